#include "kernels/linear/linear_ref.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace margay::reference {
namespace {

constexpr int kOutputs = 64;  // per item of work
constexpr int kRows = 16;

}  // namespace

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

}  // namespace margay::reference
