// Rows to e4m3 and back, sixteen values at once: the bits of fp8_body.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace margay {
namespace {

inline __mmask16 FirstOf(int n) { return static_cast<__mmask16>((1U << (n < 16 ? n : 16)) - 1); }

inline __m512i Magnitudes(__m512 x) { return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)); }

// Codes of values that are scaled already, in the low bytes.
inline __m512i Fp8Codes(__m512 v) {
  const __m512i magnitude = Magnitudes(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(magnitude, odd), _mm512_set1_epi32(0x7ffff - (120 << 23)));
  const __m512i normal = _mm512_srli_epi32(rounded, 20);
  // 2^-9 is worth one; 1.5 * 2^23 rounds to whole numbers.
  const __m512 small = _mm512_fmadd_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(512), _mm512_set1_ps(12582912));
  const __mmask16 tiny = _mm512_cmplt_epu32_mask(magnitude, _mm512_set1_epi32((127 - 6) << 23));
  __m512i code = _mm512_mask_and_epi32(normal, tiny, _mm512_castps_si512(small), _mm512_set1_epi32(0xf));
  code = _mm512_mask_mov_epi32(code, _mm512_cmpgt_epu32_mask(magnitude, _mm512_set1_epi32(0x7f800000)), _mm512_set1_epi32(0x7f));
  // The sign from the value, all else from the code.
  constexpr int kSelect = 0xca;
  return _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x80), _mm512_srli_epi32(_mm512_castps_si512(v), 24), code, kSelect);
}

float ToFp8(const float* x, int n, uint8_t* y) {
  __m512i most = _mm512_setzero_si512();  // magnitudes order as integers do
  int i = 0;
  for (; i + 16 <= n; i += 16) most = _mm512_max_epu32(most, Magnitudes(_mm512_loadu_ps(x + i)));
  if (i < n) most = _mm512_max_epu32(most, Magnitudes(_mm512_maskz_loadu_ps(FirstOf(n - i), x + i)));
  const uint32_t bits = _mm512_reduce_max_epu32(most);
  const float largest = bits > (127U - 100U) << 23 ? __builtin_bit_cast(float, bits) : 448.0F;
  const __m512 factor = _mm512_set1_ps(448.0F / largest);
  for (i = 0; i + 16 <= n; i += 16) {
    const __m128i codes = _mm512_cvtepi32_epi8(Fp8Codes(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), codes);
  }
  if (i < n) {
    const __mmask16 some = FirstOf(n - i);
    _mm512_mask_cvtepi32_storeu_epi8(y + i, some, Fp8Codes(_mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), factor)));
  }
  return largest / 448.0F;
}

// As fp16, e4m3 has a longer mantissa and an exponent bias that is 8 higher; its one NaN is a number there.
void FromFp8(const uint8_t* x, float scale, int n, float* y) {
  const __m512 factor = _mm512_set1_ps(scale * 256);
  for (int i = 0; i < n; i += 16) {
    const __mmask16 some = FirstOf(n - i);
    const __m256i codes = _mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(some, x + i));
    const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi16(0x7f));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(0x80)), 8);
    const __m256i halves = _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign);
    const __mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
    const __m512 values = _mm512_mask_mov_ps(_mm512_cvtph_ps(halves), nan, _mm512_set1_ps(__builtin_nanf("")));
    _mm512_mask_storeu_ps(y + i, some, _mm512_mul_ps(values, factor));
  }
}

}  // namespace
}  // namespace margay
