// The operations in plain fp32: the specification that every fast kernel is compared with. The result of one row is
// independent of the other rows, of the number of threads and of how a prompt is cut into steps.
#pragma once

#include <cstdint>

#include "core/thread_pool.h"

namespace margay::reference {

// y = weight * (x / sqrt(mean(x^2) + eps)), then times scale.
void RmsNorm(const float* x, const float* weight, int n, float eps, float scale, float* y);

// y[row, o] = bias[o] + sum over k of x[row, k] * w[k, o], in the order of k.
struct LinearParams {
  const float* x;     // [rows] at distance x_stride
  int x_stride;
  int rows;
  const float* w;     // [in, out]
  const float* bias;  // [out] or null
  int in;
  int out;
  float* y;           // [rows] at distance y_stride
  int y_stride;
};
void Linear(const LinearParams& params, ThreadPool* pool);

// Rotates the pairs (x[2i], x[2i+1]) by the angles whose cosine and sine are given.
void Rotate(float* x, int pairs, const float* cosine, const float* sine);

void Softmax(float* x, int n);

// y = silu(gate) * up
void SiluMul(const float* gate, const float* up, int n, float* y);

// Sum of products, in eight interleaved partial sums.
float Dot(const float* a, const float* b, int n);

}  // namespace margay::reference
