// Rows that become columns, a square of vectors at a time; included after a vec_*.h.
#pragma once

#include "kernels/vec/vec_math.h"

namespace margay {
namespace {

// to[i * stride + r] = row(r)[i] for r < rows and i < width; 0 for r in [rows, filled).
template <typename Row>
inline __attribute__((always_inline)) void Transpose(Row&& row, int rows, int filled, int width, int64_t stride, float* to) {
  for (int first = 0; first < filled; first += kW) {
    for (int i = 0; i < width; i += kW) {
      Vec::Reg square[kW];
#pragma GCC unroll 16
      for (int r = 0; r < kW; ++r) square[r] = first + r < rows ? LoadUpTo(row(first + r) + i, width - i) : Vec::Zero();
      Vec::Transpose(square);
#pragma GCC unroll 16
      for (int k = 0; k < kW; ++k) {
        if (i + k < width) StoreUpTo(to + (i + k) * stride + first, square[k], filled - first);
      }
    }
  }
}

}  // namespace
}  // namespace margay
