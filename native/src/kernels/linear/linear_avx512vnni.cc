// Matrix products of int8 weights by the integer dot product of AVX512-VNNI. Activations are rounded to int8 with one
// scale per row; the integer sums are exact, so that neither rows nor panels of a call can change a result.
#if defined(__AVX512VNNI__)
#include <immintrin.h>

#include <cstdint>

#include "kernels/linear/linear.h"

namespace margay {
namespace {

// Per row its scale, and 128 times the sum of its values: what weights that are stored plus 128 add to a sum.
struct RowFacts {
  float scale[kMostStripRows];
  int32_t offset[kMostStripRows];
};

struct Dot {
  using Sum = __m512i;
  static constexpr int kInputs = 4;
  static constexpr int kParts = 1;
  static constexpr int kHeader = sizeof(RowFacts);

  static Sum Zero() { return _mm512_setzero_si512(); }
  static void Add(Sum* sum, __m512i weights, __m512i x) { asm("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(weights), "v"(x)); }
  static void Add(Sum* sum, __m512i weights, const uint32_t* x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(weights), "m"(*x));
  }
  static __m512 Finish(const LinearStrip& t, int panel, int row, Sum sum) {
    const auto* facts = static_cast<const RowFacts*>(t.x);
    const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(facts->offset[row])));
    const __m512 scales = _mm512_loadu_ps(t.scales + (t.first_panel + panel) * kPanel);
    return _mm512_mul_ps(exact, _mm512_mul_ps(scales, _mm512_set1_ps(facts->scale[row])));
  }
};

}  // namespace
}  // namespace margay

// The instruction comes first.
#include "kernels/linear/dot_body.h"

namespace margay {
namespace {

float Highest(const float* x, int n) {
  __m512 top = _mm512_setzero_ps();
  for (int k = 0; k < n; k += 16) top = _mm512_max_ps(top, _mm512_abs_ps(_mm512_maskz_loadu_ps(FirstLanes(n - k), x + k)));
  return _mm512_reduce_max_ps(top);
}

void Pack(const LinearRows* rows) {
  auto* facts = static_cast<RowFacts*>(rows->packed);
  auto* words = reinterpret_cast<uint32_t*>(facts + 1);
  for (int r = 0; r < rows->rows; ++r) {
    const float* x = rows->x + (rows->x_rows == nullptr ? r : rows->x_rows[r]) * rows->x_stride;
    const float top = Highest(x, rows->in);
    const __m512 factor = _mm512_set1_ps(top > 0 ? 127.0F / top : 0.0F);
    __m512i sum = _mm512_setzero_si512();
    for (int k = 0; k < rows->in; k += 64) {
      __m128i parts[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m512 values = _mm512_maskz_loadu_ps(FirstLanes(rows->in - k - 16 * i), x + k + 16 * i);
        const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(values, factor));
        sum = _mm512_add_epi32(sum, rounded);
        parts[i] = _mm512_cvtepi32_epi8(rounded);
      }
      const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(parts[0]), parts[1], 1);
      const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(parts[2]), parts[3], 1);
      PutWords(words + int64_t{k} / 4 * rows->rows + r, rows->rows, (rows->in - k + 3) / 4,
               _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
    }
    facts->scale[r] = top / 127.0F;
    facts->offset[r] = 128 * _mm512_reduce_add_epi32(sum);
  }
}

}  // namespace

const LinearKernel* Avx512VnniLinear() {
  static constexpr LinearKernel kKernel = {Activations::kInt8, kDotRows, kDotRows, DotPanels, DotPackedBytes, Pack, DotMultiply};
  return &kKernel;
}

}  // namespace margay
#endif
