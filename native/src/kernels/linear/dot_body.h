// Products by instructions that multiply words of several inputs: 16 outputs of such words lie in a line of a panel.
// Included after a definition of Dot:
//   kInputs            of a word
//   kParts             words whose sum is one of activations
//   kHeader            bytes before the words of packed activations, which are [words][parts][rows]
//   Sum, Zero, Add     sums of 16 outputs; Add takes a line of weights and one row's word, in a register or in memory
//   Finish             the sums of one row as floats
#pragma once

#include <immintrin.h>

#include "kernels/linear/linear.h"
#include "kernels/linear/stream.h"

namespace margay {
namespace {

constexpr int kDotRows = 16;
constexpr int DotPanels(int rows) { return rows <= 3 ? 8 : rows <= 6 ? 4 : rows <= 9 ? 3 : rows <= 14 ? 2 : 1; }

int64_t DotPackedBytes(int rows, int in) { return Dot::kHeader + int64_t{4} * Dot::kParts * ((in + Dot::kInputs - 1) / Dot::kInputs) * rows; }

// Lanes [0, n) of 16.
__mmask16 FirstLanes(int n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

// Writes 16 words at a distance of `stride`, `left` of them in use.
void PutWords(uint32_t* words, int stride, int left, __m512i value) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm512_mask_i32scatter_epi32(words, FirstLanes(left), _mm512_mullo_epi32(lanes, _mm512_set1_epi32(stride)), value, 4);
}

template <int R, int P>
struct Block {
  using Sum = Dot::Sum;

  __attribute__((always_inline)) static void Accumulate(const LinearStrip& t, const uint8_t* w, const uint32_t* x, int first, int end,
                                                        int64_t ahead, Sum (*sum)[P]) {
#pragma GCC unroll 1
    for (int k = first; k < end; ++k) {
      const uint8_t* at = w + int64_t{64} * k;
      const uint32_t* row = x + int64_t{k} * Dot::kParts * R;
      __m512i weights[P];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        __builtin_prefetch(at + p * t.panel_bytes + kNear, 0, 3);
        __builtin_prefetch(at + p * t.panel_bytes + ahead, 0, 2);
        weights[p] = _mm512_loadu_si512(at + p * t.panel_bytes);
      }
#pragma GCC unroll 4
      for (int i = 0; R >= 4 && i < Dot::kParts * R; i += 16) __builtin_prefetch(row + kAheadX + i, 0, 3);
#pragma GCC unroll 4
      for (int part = 0; part < Dot::kParts; ++part, row += R) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          if constexpr (P == 1) {
            Dot::Add(&sum[r][0], weights[0], row + r);
          } else {
            const __m512i factor = _mm512_set1_epi32(static_cast<int>(row[r]));
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) Dot::Add(&sum[r][p], weights[p], factor);
          }
        }
      }
    }
  }

  static void Run(const LinearStrip& t, int panel) {
    const auto* x = reinterpret_cast<const uint32_t*>(static_cast<const uint8_t*>(t.x) + Dot::kHeader);
    const uint8_t* w = t.w + panel * t.panel_bytes;
    const int words = (t.in + Dot::kInputs - 1) / Dot::kInputs;
    const int turn = words > Far(P) / 64 ? words - Far(P) / 64 : 0;
    Sum sum[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[r][p] = Dot::Zero();
    }
    Accumulate(t, w, x, 0, turn, Far(P), sum);
    Accumulate(t, w, x, turn, words, Far(P) + (P - 1) * t.panel_bytes, sum);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const __m512 value = Dot::Finish(t, panel + p, r, sum[r][p]);
        const int left = t.outputs - (panel + p) * kPanel;
        _mm512_mask_storeu_ps(t.y + r * t.y_stride + (panel + p) * kPanel, FirstLanes(left), value);
      }
    }
  }
};

template <int R, int P>
void RunPanels(const LinearStrip& strip, int panel) {
  for (; panel + P <= strip.panels; panel += P) Block<R, P>::Run(strip, panel);
  if constexpr (P > 1) {
    if (panel < strip.panels) RunPanels<R, (P > 4 ? 4 : P - 1)>(strip, panel);
  }
}

template <int R>
void RunStrip(const LinearStrip& strip) {
  if (strip.rows == R) return RunPanels<R, DotPanels(R)>(strip, 0);
  if constexpr (R > 1) RunStrip<R - 1>(strip);
}

void DotMultiply(const LinearStrip* strip) { RunStrip<kDotRows>(*strip); }

}  // namespace
}  // namespace margay
