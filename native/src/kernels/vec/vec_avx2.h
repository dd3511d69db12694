// Eight floats: AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace margay {
namespace {

struct Vec {
  using Reg = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kQueries = 4;
  static constexpr int kScores = 12;
  static constexpr int kValues = 3;

  static __m256i Mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Reg Zero() { return _mm256_setzero_ps(); }
  static Reg Set(float a) { return _mm256_set1_ps(a); }
  static Reg Load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg LoadSome(const float* p, int n) { return _mm256_maskload_ps(p, Mask(n)); }
  static void Store(float* p, Reg a) { _mm256_storeu_ps(p, a); }
  static void StoreSome(float* p, Reg a, int n) { _mm256_maskstore_ps(p, Mask(n), a); }
  static Reg Fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  // *sum += a * b
  static void AddProduct(Reg* sum, Reg a, Reg b) { *sum = _mm256_fmadd_ps(a, b, *sum); }
  static Reg Add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg Sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg Mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg Div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static Reg Max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg Min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static bool AnyGreater(Reg a, Reg b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
  static bool AnyAtLeast(Reg a, Reg b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)) != 0; }
  static float Sum(Reg a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
  }
  static float Highest(Reg a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
  }

  static Reg FromBf16(__m128i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)); }
  static Reg LoadBf16(const uint16_t* p) { return FromBf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Reg LoadBf16Some(const uint16_t* p, int n) {
    alignas(16) uint16_t some[8] = {};
    for (int i = 0; i < n; ++i) some[i] = p[i];
    return FromBf16(_mm_load_si128(reinterpret_cast<const __m128i*>(some)));
  }
  static void StoreBf16Some(uint16_t* p, Reg a, int n) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i top = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    top = _mm256_blendv_epi8(top, _mm256_set1_epi32(0x7fc0), nan);
    alignas(32) uint32_t words[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), top);
    for (int i = 0; i < n; ++i) p[i] = static_cast<uint16_t>(words[i]);
  }
  static void StoreBf16Two(uint16_t* p, Reg first, Reg second) {
    StoreBf16Some(p, first, kWidth);
    StoreBf16Some(p + kWidth, second, kWidth);
  }
  static void LoadPairs(const uint8_t* p, Reg* even, Reg* odd) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000U))));
  }
  // 8 words of two e4m3 codes each, at p and 32 bytes on: the low codes (pair 0) or the high ones (pair 1), to be
  // multiplied by kFp8Factor. e4m3 is fp16 with a shorter mantissa and an exponent bias that is 8 lower.
  static constexpr float kFp8Factor = 256;
  static Reg Fp8Codes(__m128i words, int pair) {
    const __m128i codes = pair == 0 ? words : _mm_srli_epi16(words, 8);
    const __m128i sign = _mm_slli_epi16(_mm_and_si128(codes, _mm_set1_epi16(0x80)), 8);
    const __m128i rest = _mm_slli_epi16(_mm_and_si128(codes, _mm_set1_epi16(0x7f)), 7);
    return _mm256_cvtph_ps(_mm_or_si128(sign, rest));
  }
  static void LoadFp8Pairs(const uint8_t* p, int pair, Reg* even, Reg* odd) {
    *even = Fp8Codes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), pair);
    *odd = Fp8Codes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 32)), pair);
  }

  // [x1, x0, x3, x2, ...]
  static Reg SwapPairs(Reg a) { return _mm256_permute_ps(a, 0xb1); }
  // Rows become columns.
  static void Transpose(Reg (&r)[8]) {
    Reg t[8];
    Reg u[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
      r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
  }

  // Inputs 2 * pair and 2 * pair + 1 of groups of four that are stored plus 128.
  static Reg FromByte(__m256i words, int byte) {
    const __m256i value = _mm256_and_si256(_mm256_srli_epi32(words, 8 * byte), _mm256_set1_epi32(0xff));
    return _mm256_sub_ps(_mm256_cvtepi32_ps(value), _mm256_set1_ps(128.0F));
  }
  static void LoadInt8Pairs(const uint8_t* p, int pair, Reg* even, Reg* odd) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    *even = FromByte(words, 2 * pair);
    *odd = FromByte(words, 2 * pair + 1);
  }

  static Reg SplitPower(Reg x, Reg* rest) {
    const __m256i n = _mm256_cvtps_epi32(x);
    *rest = _mm256_sub_ps(x, _mm256_cvtepi32_ps(n));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
};

}  // namespace
}  // namespace margay
