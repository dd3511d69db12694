// Matrix products over packed panels; included after a vec_*.h.
#pragma once

#include "kernels/linear/linear.h"

namespace margay {
namespace {

constexpr int kPanelVecs = kPanel / Vec::kWidth;
constexpr int kScaleBlock = 128;

template <WeightFormat kFormat>
constexpr int64_t PanelBytes(int in) {
  if (kFormat == WeightFormat::kBf16) return int64_t{(in + 1) / 2} * kPanel * 4;
  return int64_t{in} * kPanel * (kFormat == WeightFormat::kF32 ? 4 : 1);
}

// R rows by P panels, held in registers over all inputs. Every output is one chain of fused multiply-adds in the order
// of k, whatever R and P are.
template <int R, int P, WeightFormat kFormat>
inline void MatmulBlock(const MatmulTile& t, int row, int panel) {
  using Reg = Vec::Reg;
  constexpr int kVecs = P * kPanelVecs;
  Reg sum[R][kVecs];
  const float* x[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    x[r] = t.x + (t.x_rows == nullptr ? row + r : t.x_rows[row + r]) * t.x_stride;
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) sum[r][v] = Vec::Zero();
  }
  const int64_t panel_bytes = PanelBytes<kFormat>(t.in);
  const uint8_t* w = t.w + (t.first_panel + panel) * panel_bytes;
  const int scale_columns = (t.in + kScaleBlock - 1) / kScaleBlock;

  const auto step = [&](int k, bool both) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      const uint8_t* at = w + v / kPanelVecs * panel_bytes;
      constexpr int kW = Vec::kWidth;
      const int lane = v % kPanelVecs * kW;
      Reg even;
      Reg odd = Vec::Zero();
      if constexpr (kFormat == WeightFormat::kBf16) {
        Vec::LoadPairs(at + k * (kPanel * 2) + lane * 4, &even, &odd);
      } else if constexpr (kFormat == WeightFormat::kF32) {
        const float* values = reinterpret_cast<const float*>(at) + k * kPanel + lane;
        even = Vec::Load(values);
        if (both) odd = Vec::Load(values + kPanel);
      } else {
        // A panel never straddles two scale rows, nor a pair of inputs two scale columns.
        const int scale_row = (t.first_panel + panel + v / kPanelVecs) * kPanel / kScaleBlock;
        const Reg scale = Vec::Set(t.scales[scale_row * scale_columns + k / kScaleBlock]);
        even = Vec::Mul(Vec::LoadFp8(at + k * kPanel + lane), scale);
        if (both) odd = Vec::Mul(Vec::LoadFp8(at + (k + 1) * kPanel + lane), scale);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        sum[r][v] = Vec::Fma(Vec::Set(x[r][k]), even, sum[r][v]);
        if (both) sum[r][v] = Vec::Fma(Vec::Set(x[r][k + 1]), odd, sum[r][v]);
      }
    }
  };
  int k = 0;
  for (; k + 2 <= t.in; k += 2) step(k, true);
  if (k < t.in) step(k, false);

#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    float* y = t.y + (row + r) * t.y_stride + panel * kPanel;
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      const int left = t.outputs - panel * kPanel - v * Vec::kWidth;
      if (left >= Vec::kWidth) {
        Vec::Store(y + v * Vec::kWidth, sum[r][v]);
      } else if (left > 0) {
        Vec::StoreSome(y + v * Vec::kWidth, sum[r][v], left);
      }
    }
  }
}

template <int P, WeightFormat kFormat, int R = Vec::kRows>
inline void MatmulLastRows(const MatmulTile& t, int row, int panel) {
  if (t.rows - row == R) return MatmulBlock<R, P, kFormat>(t, row, panel);
  if constexpr (R > 1) MatmulLastRows<P, kFormat, R - 1>(t, row, panel);
}

template <int P, WeightFormat kFormat>
inline void MatmulPanels(const MatmulTile& t, int panel) {
  int row = 0;
  for (; row + Vec::kRows <= t.rows; row += Vec::kRows) MatmulBlock<Vec::kRows, P, kFormat>(t, row, panel);
  if (row < t.rows) MatmulLastRows<P, kFormat, Vec::kRows - 1>(t, row, panel);
}

template <WeightFormat kFormat>
void MatmulFormat(const MatmulTile& t) {
  int panel = 0;
  if (t.rows == 1) {
    for (; panel + Vec::kPanelsOneRow <= t.panels; panel += Vec::kPanelsOneRow) {
      MatmulBlock<1, Vec::kPanelsOneRow, kFormat>(t, 0, panel);
    }
  }
  for (; panel + Vec::kPanels <= t.panels; panel += Vec::kPanels) MatmulPanels<Vec::kPanels, kFormat>(t, panel);
  if constexpr (Vec::kPanels > 1) {
    for (; panel < t.panels; ++panel) MatmulPanels<1, kFormat>(t, panel);
  }
}

void Matmul(const MatmulTile* tile) {
  switch (tile->format) {
    case WeightFormat::kBf16: return MatmulFormat<WeightFormat::kBf16>(*tile);
    case WeightFormat::kF32: return MatmulFormat<WeightFormat::kF32>(*tile);
    case WeightFormat::kFp8: return MatmulFormat<WeightFormat::kFp8>(*tile);
  }
}

}  // namespace
}  // namespace margay
