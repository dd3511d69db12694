// Matrix products of bf16 weights on tiles of 16 rows by 16 outputs. Included after a definition of Tiles, which has
// eight tiles of 16 lines of 64 bytes:
//   Configure(rows), Release()   tiles 0 to 6 have that many lines, tile 7 all 16
//   Zero<t>(), Load<t>(from, distance of lines in bytes), Store<t>(to, distance)
//   AddProducts<sum, a, b>()     sum[m][n] += a[m][2k] * b[k][2n] + a[m][2k + 1] * b[k][2n + 1], of bf16, in the order of k
//
// A panel of packed bf16 weights is a pile of such tiles b: 16 words of two inputs by 16 outputs. As with the bf16 dot
// product, every activation is the sum of three bf16, so that sums are as good as those of floats.
#pragma once

#include <cstdint>

#include "kernels/linear/linear.h"
#include "kernels/linear/stream.h"

namespace margay {
namespace {

constexpr int kTileInputs = 32;
constexpr int kTileBytes = 1024;
constexpr int kTileRows = 16;
constexpr int kParts = 3;
constexpr int kTilePanels = 4;  // sums 0 to 3; activations 4 to 6; weights 7

int TilePanels(int) { return kTilePanels; }

int TileSteps(int in) { return (in + kTileInputs - 1) / kTileInputs; }

int64_t TilePackedBytes(int rows, int in) { return int64_t{TileSteps(in)} * kParts * rows * kTileInputs * 2; }

uint16_t RoundToBf16(float value) {
  uint32_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>(bits >> 16 | 0x40U);
  return static_cast<uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

// [steps][parts][rows][32 inputs], filled up with zeros.
void PackTiles(const LinearRows* rows) {
  auto* packed = static_cast<uint16_t*>(rows->packed);
  const int64_t part_values = int64_t{rows->rows} * kTileInputs;
  for (int step = 0; step < TileSteps(rows->in); ++step) {
    for (int r = 0; r < rows->rows; ++r) {
      const float* x = rows->x + (rows->x_rows == nullptr ? r : rows->x_rows[r]) * rows->x_stride;
      uint16_t* to = packed + step * kParts * part_values + r * kTileInputs;
      for (int i = 0; i < kTileInputs; ++i) {
        const int k = step * kTileInputs + i;
        float rest = k < rows->in ? x[k] : 0.0F;
        for (int part = 0; part < kParts; ++part) {
          const uint16_t bits = RoundToBf16(rest);
          to[part * part_values + i] = bits;
          const uint32_t wide = uint32_t{bits} << 16;
          float value = 0;
          __builtin_memcpy(&value, &wide, sizeof(value));
          rest -= value;
        }
      }
    }
  }
}

void FetchAhead(const uint8_t* weights, int64_t far) {
  for (int line = 0; line < kTileBytes; line += 64) {
    __builtin_prefetch(weights + kNear + line, 0, 3);
    __builtin_prefetch(weights + far + line, 0, 2);
  }
}

template <int kPanelIndex>
void MultiplyPanel(const uint8_t* weights) {
  Tiles::Load<7>(weights, 64);
  Tiles::AddProducts<kPanelIndex, 4, 7>();
  Tiles::AddProducts<kPanelIndex, 5, 7>();
  Tiles::AddProducts<kPanelIndex, 6, 7>();
}

void MultiplyStep(const LinearStrip& t, int step, const uint8_t* weights, int panels, int64_t distance) {
  const int64_t part_bytes = int64_t{t.rows} * kTileInputs * 2;
  const auto* x = static_cast<const uint8_t*>(t.x) + step * kParts * part_bytes;
  Tiles::Load<4>(x, 64);
  Tiles::Load<5>(x + part_bytes, 64);
  Tiles::Load<6>(x + 2 * part_bytes, 64);
  MultiplyPanel<0>(weights);
  if (panels > 1) MultiplyPanel<1>(weights + distance);
  if (panels > 2) MultiplyPanel<2>(weights + 2 * distance);
  if (panels > 3) MultiplyPanel<3>(weights + 3 * distance);
}

void PutSums(const LinearStrip& t, int panel, const float* sums) {
  const int left = t.outputs - panel * kPanel;
  const int count = left < kPanel ? left : kPanel;
  for (int r = 0; r < t.rows; ++r) {
    for (int o = 0; o < count; ++o) t.y[r * t.y_stride + panel * kPanel + o] = sums[r * kPanel + o];
  }
}

void MultiplyTiles(const LinearStrip* strip) {
  const LinearStrip& t = *strip;
  const int whole = t.in / kTileInputs;
  alignas(64) float sums[kTilePanels][kTileRows * kPanel];
  alignas(64) uint8_t last[kTilePanels][kTileBytes];  // of each panel, filled up with zeros
  Tiles::Configure(t.rows);
  for (int panel = 0; panel < t.panels; panel += kTilePanels) {
    const int panels = t.panels - panel < kTilePanels ? t.panels - panel : kTilePanels;
    const uint8_t* weights = t.w + panel * t.panel_bytes;
    Tiles::Zero<0>();
    Tiles::Zero<1>();
    Tiles::Zero<2>();
    Tiles::Zero<3>();
    for (int step = 0; step < whole; ++step) {
      const uint8_t* at = weights + int64_t{step} * kTileBytes;
      for (int p = 0; p < panels; ++p) FetchAhead(at + p * t.panel_bytes, Far(kTilePanels));
      MultiplyStep(t, step, at, panels, t.panel_bytes);
    }
    if (whole < TileSteps(t.in)) {
      const int64_t done = int64_t{whole} * kTileBytes;
      for (int p = 0; p < panels; ++p) {
        for (int i = 0; i < kTileBytes; ++i) last[p][i] = done + i < t.panel_bytes ? weights[p * t.panel_bytes + done + i] : 0;
      }
      MultiplyStep(t, whole, last[0], panels, kTileBytes);
    }
    Tiles::Store<0>(sums[0], 64);
    Tiles::Store<1>(sums[1], 64);
    Tiles::Store<2>(sums[2], 64);
    Tiles::Store<3>(sums[3], 64);
    for (int p = 0; p < panels; ++p) PutSums(t, panel + p, sums[p]);
  }
  Tiles::Release();
}

constexpr LinearKernel kTileKernel = {Activations::kF32, kTileRows, kTileRows, TilePanels, TilePackedBytes, PackTiles, MultiplyTiles};

}  // namespace
}  // namespace margay
