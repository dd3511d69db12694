// Matrix products of bf16 weights by the dot product of AVX512-BF16, sums in fp32. Every activation is the sum of three
// bf16, exact to the bits of a float: rounded to one it would move logits three times as far as bf16 KV does.
#if defined(__AVX512BF16__)
#include <immintrin.h>

#include <cstdint>

#include "kernels/linear/linear.h"

namespace margay {
namespace {

struct Dot {
  using Sum = __m512;
  static constexpr int kInputs = 2;
  static constexpr int kParts = 3;
  static constexpr int kHeader = 0;

  static Sum Zero() { return _mm512_setzero_ps(); }
  static void Add(Sum* sum, __m512i weights, __m512i x) { asm("vdpbf16ps %2, %1, %0" : "+v"(*sum) : "v"(weights), "v"(x)); }
  static void Add(Sum* sum, __m512i weights, const uint32_t* x) {
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(weights), "m"(*x));
  }
  static __m512 Finish(const LinearStrip&, int, int, Sum sum) { return sum; }
};

}  // namespace
}  // namespace margay

// The instruction comes first.
#include "kernels/linear/dot_body.h"

namespace margay {
namespace {

__m512 FromBf16(__m256bh bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(bits)), 16));
}

// What is left of x when it is rounded to bf16.
__m512 Rest(__m512 x) { return _mm512_sub_ps(x, FromBf16(_mm512_cvtneps_pbh(x))); }

void Pack(const LinearRows* rows) {
  const int count = rows->rows;
  for (int r = 0; r < count; ++r) {
    const float* x = rows->x + (rows->x_rows == nullptr ? r : rows->x_rows[r]) * rows->x_stride;
    for (int k = 0; k < rows->in; k += 32) {
      __m512 low = _mm512_maskz_loadu_ps(FirstLanes(rows->in - k), x + k);
      __m512 high = _mm512_maskz_loadu_ps(FirstLanes(rows->in - k - 16), x + k + 16);
      uint32_t* words = static_cast<uint32_t*>(rows->packed) + int64_t{k} / 2 * Dot::kParts * count + r;
      for (int part = 0; part < Dot::kParts; ++part) {
        PutWords(words + part * count, Dot::kParts * count, (rows->in - k + 1) / 2, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
        low = Rest(low);
        high = Rest(high);
      }
    }
  }
}

}  // namespace

const LinearKernel* Avx512Bf16Linear() {
  static constexpr LinearKernel kKernel = {Activations::kF32, kDotRows, kDotRows, DotPanels, DotPackedBytes, Pack, DotMultiply};
  return &kKernel;
}

}  // namespace margay
#endif
