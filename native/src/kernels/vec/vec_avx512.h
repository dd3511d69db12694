// Sixteen floats: AVX-512 F, BW, VL and DQ.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace margay {
namespace {

struct Vec {
  using Reg = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kQueries = 4;
  static constexpr int kScores = 16;
  static constexpr int kValues = 4;

  static __mmask16 Mask(int n) { return static_cast<__mmask16>((1U << n) - 1); }
  static Reg Zero() { return _mm512_setzero_ps(); }
  static Reg Set(float a) { return _mm512_set1_ps(a); }
  static Reg Load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg LoadSome(const float* p, int n) { return _mm512_maskz_loadu_ps(Mask(n), p); }
  static void Store(float* p, Reg a) { _mm512_storeu_ps(p, a); }
  static void StoreSome(float* p, Reg a, int n) { _mm512_mask_storeu_ps(p, Mask(n), a); }
  static Reg Fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  // *sum += a * b, spelled out: left to itself the compiler copies accumulators about.
  static void AddProduct(Reg* sum, Reg a, Reg b) { asm("vfmadd231ps %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b)); }
  static void AddProduct(Reg* sum, Reg a, const float* b) {
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(a), "m"(*b));
  }
  static Reg Add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg Sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg Mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg Div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static Reg Max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg Min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static bool AnyGreater(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
  static bool AnyAtLeast(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ) != 0; }
  static float Sum(Reg a) { return _mm512_reduce_add_ps(a); }
  static float Highest(Reg a) { return _mm512_reduce_max_ps(a); }

  static Reg FromBf16(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
  static Reg LoadBf16(const uint16_t* p) { return FromBf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static Reg LoadBf16Some(const uint16_t* p, int n) { return FromBf16(_mm256_maskz_loadu_epi16(Mask(n), p)); }
  // bf16 in the high halves, to nearest, ties to even; not for NaN.
  static __m512i RoundToBf16(Reg a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  }
  static void StoreBf16Some(uint16_t* p, Reg a, int n) {
    const __m512i top = _mm512_mask_mov_epi32(_mm512_srli_epi32(RoundToBf16(a), 16), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm256_mask_storeu_epi16(p, Mask(n), _mm512_cvtepi32_epi16(top));
  }
  static void StoreBf16Two(uint16_t* p, Reg first, Reg second) {
    if (_mm512_cmp_ps_mask(first, second, _CMP_UNORD_Q) != 0) {
      StoreBf16Some(p, first, kWidth);
      return StoreBf16Some(p + kWidth, second, kWidth);
    }
    // The odd one of every two halves.
    const __m512i odd_halves = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19,
                                                17, 15, 13, 11, 9, 7, 5, 3, 1);
    _mm512_storeu_si512(p, _mm512_permutex2var_epi16(RoundToBf16(first), odd_halves, RoundToBf16(second)));
  }
  // The bits that bf16 keeps, as floats and as bf16.
  static Reg High(Reg a) { return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(static_cast<int>(0xffff0000U)))); }
  static void StoreHigh(Reg a, uint16_t* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(a), 16)));
  }
  // bf16 values of `even` and `odd` by turns; kWidth of each.
  static void StorePairs(Reg even, Reg odd, uint16_t* p) {
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
    _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_castps_si512(High(odd))));
  }
  static void LoadPairs(const uint8_t* p, Reg* even, Reg* odd) {
    const __m512i words = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000U))));
  }
  // 16 words of two e4m3 codes each, at p and 32 bytes on: the low codes (pair 0) or the high ones (pair 1), to be
  // multiplied by kFp8Factor. e4m3 is fp16 with a shorter mantissa and an exponent bias that is 8 lower.
  static constexpr float kFp8Factor = 256;
  static void LoadFp8Pairs(const uint8_t* p, int pair, Reg* even, Reg* odd) {
    const __m512i words = _mm512_loadu_si512(p);
    const __m512i sign = pair == 0 ? _mm512_slli_epi16(words, 8) : words;
    const __m512i rest = pair == 0 ? _mm512_slli_epi16(words, 7) : _mm512_srli_epi16(words, 1);
    constexpr int kSelect = 0xca;  // the first operand chooses between the others
    const __m512i both = _mm512_ternarylogic_epi32(_mm512_set1_epi16(static_cast<int16_t>(0x8000)), sign, rest, kSelect);
    const __m512i halves = _mm512_and_si512(both, _mm512_set1_epi16(static_cast<int16_t>(0xbf80)));
    *even = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
    *odd = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
  }

  // [x1, x0, x3, x2, ...]
  static Reg SwapPairs(Reg a) { return _mm512_permute_ps(a, 0xb1); }
  // Rows become columns.
  static void Transpose(Reg (&r)[16]) {
    Reg t[16];
    Reg u[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
      u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
      u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
      r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
      r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
      r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
  }

  // Inputs 2 * pair and 2 * pair + 1 of groups of four that are stored plus 128.
  static Reg FromByte(__m512i words, int byte) {
    const __m512i value = _mm512_and_si512(_mm512_srli_epi32(words, static_cast<unsigned>(8 * byte)), _mm512_set1_epi32(0xff));
    return _mm512_sub_ps(_mm512_cvtepi32_ps(value), _mm512_set1_ps(128.0F));
  }
  static void LoadInt8Pairs(const uint8_t* p, int pair, Reg* even, Reg* odd) {
    const __m512i words = _mm512_loadu_si512(p);
    *even = FromByte(words, 2 * pair);
    *odd = FromByte(words, 2 * pair + 1);
  }

  static Reg SplitPower(Reg x, Reg* rest) {
    const Reg rounded = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    *rest = _mm512_sub_ps(x, rounded);
    return _mm512_scalef_ps(_mm512_set1_ps(1.0F), rounded);
  }
};

}  // namespace
}  // namespace margay
