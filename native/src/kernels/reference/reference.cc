#include "kernels/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace margay::reference {
namespace {

constexpr int kOutputs = 64;  // per item of work
constexpr int kRows = 16;

}  // namespace

void RmsNorm(const float* x, const float* weight, int n, float eps, float scale, float* y) {
  const float inverse = 1.0F / std::sqrt(Dot(x, x, n) / static_cast<float>(n) + eps);
  for (int i = 0; i < n; ++i) y[i] = weight[i] * (x[i] * inverse) * scale;
}

void Linear(const LinearParams& p, ThreadPool* pool) {
  const int columns = (p.out + kOutputs - 1) / kOutputs;
  const int bands = (p.rows + kRows - 1) / kRows;
  pool->Run(columns * bands, [&](int item, int) {
    const int first = item % columns * kOutputs;
    const int count = std::min(kOutputs, p.out - first);
    const int row_end = std::min(p.rows, (item / columns + 1) * kRows);
    for (int row = item / columns * kRows; row < row_end; ++row) {
      const float* x = p.x + static_cast<ptrdiff_t>(row) * p.x_stride;
      float sum[kOutputs] = {};
      if (p.bias != nullptr) std::memcpy(sum, p.bias + first, static_cast<size_t>(count) * sizeof(float));
      for (int k = 0; k < p.in; ++k) {
        const float* w = p.w + static_cast<ptrdiff_t>(k) * p.out + first;
        for (int o = 0; o < count; ++o) sum[o] += x[k] * w[o];
      }
      std::memcpy(p.y + static_cast<ptrdiff_t>(row) * p.y_stride + first, sum, static_cast<size_t>(count) * sizeof(float));
    }
  });
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
