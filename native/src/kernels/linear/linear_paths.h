// The ways to multiply that this machine can run: per instruction set one kernel for each format of weights.
#pragma once

#include <string>
#include <vector>

#include "kernels/linear/linear.h"

namespace margay {

struct LinearPath {
  std::string name;
  LinearKernels kernels;
};

// From the plainest on: generic, avx2, avx512 (fp32 products), avx512vnni (int8 by the integer dot product, else the
// same), avx512bf16 (bf16 by its dot product as well), amx (bf16 on tiles instead); on 64-bit ARM generic and neon.
const std::vector<LinearPath>& UsableLinearPaths();

// Null where this machine cannot run it.
const LinearKernels* FindLinearPath(const std::string& name);

// Whether products of bf16 weights run faster by the bf16 dot product than by fp32 multiply-adds: about a millisecond on
// the first call. False where there is no such instruction.
bool Bf16DotIsFaster();

}  // namespace margay
