// Row-wise operations: one function table per instruction set, chosen at run time.
//
// The body (pointwise_body.h) is compiled once per instruction set over its vector type (vec/vec_*.h). No std headers
// here (see linear/linear.h).
#pragma once

#include <cstdint>

namespace margay {

struct PointwiseKernels {
  // y = weight * x / sqrt(mean(x^2) + eps)
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* y);
  // x += y
  void (*add)(float* x, const float* y, int n);
  // x += a * y
  void (*add_scaled)(float* x, float a, const float* y, int n);
  // y = silu(gate) * up
  void (*silu_mul)(const float* gate, const float* up, int n, float* y);
  void (*softmax)(float* x, int n);
  void (*to_bf16)(const float* x, int n, uint16_t* y);
  void (*from_bf16)(const uint16_t* x, int n, float* y);
};

const PointwiseKernels* GenericPointwise();
#if defined(__x86_64__)
const PointwiseKernels* Avx2Pointwise();
const PointwiseKernels* Avx512Pointwise();
#endif

}  // namespace margay
