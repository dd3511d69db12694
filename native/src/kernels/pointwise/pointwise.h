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
  // The same, rounded to bf16.
  void (*rms_norm_bf16)(const float* x, const float* weight, int n, float eps, uint16_t* y);
  // x += a, then x += b unless it is null, then y = weight * x / sqrt(mean(x^2) + eps) unless weight is null.
  void (*add_norm)(float* x, const float* a, const float* b, const float* weight, int n, float eps, float* y);
  // y = sum over i of weights[i] * from[i], in order
  void (*weighted_sum)(const float* const* from, const float* weights, int count, int n, float* y);
  // y = silu(gate) * up
  void (*silu_mul)(const float* gate, const float* up, int n, float* y);
  void (*softmax)(float* x, int n);
  // The `count` slots with the highest value + bias, ties to the lower one, by falling sum; 1 <= count <= slots.
  void (*top_slots)(const float* values, const float* bias, int slots, int count, int32_t* chosen);
  void (*to_bf16)(const float* x, int n, uint16_t* y);
  void (*from_bf16)(const uint16_t* x, int n, float* y);
  // y += weight * x
  void (*add_bf16)(const uint16_t* x, float weight, int n, float* y);
  void (*add_scaled)(const float* x, float weight, int n, float* y);
  // e4m3 codes of x * (448 / m), to nearest, ties to even, m the largest magnitude, or 448 where that is 2^-100 or less.
  // Returns m / 448, the scale of the codes.
  float (*to_fp8)(const float* x, int n, uint8_t* y);
  // y = scale * value of the code
  void (*from_fp8)(const uint8_t* x, float scale, int n, float* y);
};

const PointwiseKernels* GenericPointwise();
#if defined(__x86_64__)
const PointwiseKernels* Avx2Pointwise();
const PointwiseKernels* Avx512Pointwise();
#elif defined(__aarch64__)
const PointwiseKernels* NeonPointwise();
#endif

}  // namespace margay
