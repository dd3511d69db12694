// The code paths this machine can run: one function table per operation, the best path last.
#pragma once

#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/linear/linear.h"
#include "kernels/pointwise/pointwise.h"

namespace margay {

struct CodePath {
  std::string name;
  const LinearKernels* linear;
  const AttentionKernels* attention;
  const PointwiseKernels* pointwise;
};

std::vector<CodePath> UsableCodePaths();

}  // namespace margay
