// The code paths this machine can run: one function table per operation, the best path last.
#pragma once

#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/linear/linear.h"
#include "kernels/pointwise/pointwise.h"
#include "kernels/sample/sample_kernels.h"

namespace margay {

struct CodePath {
  std::string name;
  const LinearKernels* linear;
  const AttentionKernels* attention;
  const PointwiseKernels* pointwise;
  const SampleKernels* sample;
};

// generic, avx2, avx512, avx512bf16 and amx; on 64-bit ARM generic and neon. Which of the two before amx is the better
// one differs between processors: the first call times them.
std::vector<CodePath> UsableCodePaths();

// The last one, or the best that is known without timing: the same on every start.
const CodePath& BestCodePath(const std::vector<CodePath>& usable, bool timed);

// The path of that name, else the best one.
CodePath UsableCodePath(const std::string& name);

}  // namespace margay
