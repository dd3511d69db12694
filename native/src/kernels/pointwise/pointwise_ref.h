// Row-wise operations in plain fp32: the specification that every fast kernel is compared with.
#pragma once

namespace margay::reference {

// y = weight * (x / sqrt(mean(x^2) + eps)), then times scale.
void RmsNorm(const float* x, const float* weight, int n, float eps, float scale, float* y);

// Rotates the pairs (x[2i], x[2i+1]) by the angles whose cosine and sine are given.
void Rotate(float* x, int pairs, const float* cosine, const float* sine);

void Softmax(float* x, int n);

// y = silu(gate) * up
void SiluMul(const float* gate, const float* up, int n, float* y);

// Sum of products, in eight interleaved partial sums.
float Dot(const float* a, const float* b, int n);

}  // namespace margay::reference
