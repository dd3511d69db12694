#include "kernels/pointwise/pointwise_ref.h"

#include <algorithm>
#include <cmath>

namespace margay::reference {
void RmsNorm(const float* x, const float* weight, int n, float eps, float scale, float* y) {
  const float inverse = 1.0F / std::sqrt(Dot(x, x, n) / static_cast<float>(n) + eps);
  for (int i = 0; i < n; ++i) y[i] = weight[i] * (x[i] * inverse) * scale;
}

void Rotate(float* x, int pairs, const float* cosine, const float* sine) {
  for (int i = 0; i < pairs; ++i) {
    const float even = x[2 * i];
    const float odd = x[2 * i + 1];
    x[2 * i] = even * cosine[i] - odd * sine[i];
    x[2 * i + 1] = odd * cosine[i] + even * sine[i];
  }
}

void Softmax(float* x, int n) {
  const float top = *std::max_element(x, x + n);
  float sum = 0;
  for (int i = 0; i < n; ++i) {
    x[i] = std::exp(x[i] - top);
    sum += x[i];
  }
  for (int i = 0; i < n; ++i) x[i] /= sum;
}

void SiluMul(const float* gate, const float* up, int n, float* y) {
  for (int i = 0; i < n; ++i) y[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
}

float Dot(const float* a, const float* b, int n) {
  float sums[8] = {};
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int lane = 0; lane < 8; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < n; ++i) sums[i % 8] += a[i] * b[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

}  // namespace margay::reference
