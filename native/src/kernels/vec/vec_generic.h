// Four floats in the compiler's portable vector type.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/number_formats.h"

namespace margay {
namespace {

struct Vec {
  using Reg = float __attribute__((vector_size(16)));
  using Words = uint32_t __attribute__((vector_size(16)));
  using Halves = uint16_t __attribute__((vector_size(8)));
  using Ints = int32_t __attribute__((vector_size(16)));
  static constexpr int kWidth = 4;
  static constexpr int kQueries = 2;        // attention: queries and vectors of values of a block of sums
  static constexpr int kValues = 4;
  static constexpr int kScores = 8;         // attention: vectors of a block of scores

  static Reg Zero() { return Reg{}; }
  static Reg Set(float a) { return Reg{a, a, a, a}; }
  static Reg Load(const float* p) {
    Reg r;
    std::memcpy(&r, p, sizeof(r));
    return r;
  }
  static Reg LoadSome(const float* p, int n) {
    Reg r{};
    std::memcpy(&r, p, static_cast<size_t>(n) * sizeof(float));
    return r;
  }
  static void Store(float* p, Reg a) { std::memcpy(p, &a, sizeof(a)); }
  static void StoreSome(float* p, Reg a, int n) { std::memcpy(p, &a, static_cast<size_t>(n) * sizeof(float)); }
  static Reg Fma(Reg a, Reg b, Reg c) { return a * b + c; }
  // *sum += a * b
  static void AddProduct(Reg* sum, Reg a, Reg b) { *sum += a * b; }
  static Reg Add(Reg a, Reg b) { return a + b; }
  static Reg Sub(Reg a, Reg b) { return a - b; }
  static Reg Mul(Reg a, Reg b) { return a * b; }
  static Reg Div(Reg a, Reg b) { return a / b; }
  static Reg Max(Reg a, Reg b) { return a > b ? a : b; }
  static Reg Min(Reg a, Reg b) { return a < b ? a : b; }
  static bool AnyGreater(Reg a, Reg b) {
    const Ints greater = a > b;
    return (greater[0] | greater[1] | greater[2] | greater[3]) != 0;
  }
  static bool AnyAtLeast(Reg a, Reg b) {
    const Ints enough = a >= b;
    return (enough[0] | enough[1] | enough[2] | enough[3]) != 0;
  }
  static float Sum(Reg a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static float Highest(Reg a) {
    const float x = a[0] > a[1] ? a[0] : a[1];
    const float y = a[2] > a[3] ? a[2] : a[3];
    return x > y ? x : y;
  }

  static Reg LoadBf16(const uint16_t* p) {
    Halves bits;
    std::memcpy(&bits, p, sizeof(bits));
    return __builtin_bit_cast(Reg, __builtin_convertvector(bits, Words) << 16);
  }
  static Reg LoadBf16Some(const uint16_t* p, int n) {
    Words words{};
    for (int i = 0; i < n; ++i) words[i] = static_cast<uint32_t>(p[i]) << 16;
    return __builtin_bit_cast(Reg, words);
  }
  static void StoreBf16Some(uint16_t* p, Reg a, int n) {
    for (int i = 0; i < n; ++i) p[i] = FloatToBf16(a[i]);
  }
  static void StoreBf16Two(uint16_t* p, Reg first, Reg second) {
    StoreBf16Some(p, first, kWidth);
    StoreBf16Some(p + kWidth, second, kWidth);
  }
  // The bits that bf16 keeps, as floats and as bf16.
  static Reg High(Reg a) { return __builtin_bit_cast(Reg, __builtin_bit_cast(Words, a) & 0xffff0000U); }
  static void StoreHigh(Reg a, uint16_t* p) {
    const Halves halves = __builtin_convertvector(__builtin_bit_cast(Words, a) >> 16, Halves);
    std::memcpy(p, &halves, sizeof(halves));
  }
  // bf16 values of `even` and `odd` by turns; kWidth of each.
  static void StorePairs(Reg even, Reg odd, uint16_t* p) {
    const Words pairs = __builtin_bit_cast(Words, even) >> 16 | __builtin_bit_cast(Words, High(odd));
    std::memcpy(p, &pairs, sizeof(pairs));
  }
  // Two inputs of kWidth outputs each.
  static void LoadPairs(const uint8_t* p, Reg* even, Reg* odd) {
    Words words;
    std::memcpy(&words, p, sizeof(words));
    *even = __builtin_bit_cast(Reg, words << 16);
    *odd = __builtin_bit_cast(Reg, words & 0xffff0000U);
  }
  // 4 words of two e4m3 codes each, at p and 32 bytes on: the low codes (pair 0) or the high ones (pair 1), to be
  // multiplied by kFp8Factor.
  static constexpr float kFp8Factor = 1;
  static void LoadFp8Pairs(const uint8_t* p, int pair, Reg* even, Reg* odd) {
    p += pair;
    *even = Reg{kFp8Values[p[0]], kFp8Values[p[2]], kFp8Values[p[4]], kFp8Values[p[6]]};
    *odd = Reg{kFp8Values[p[32]], kFp8Values[p[34]], kFp8Values[p[36]], kFp8Values[p[38]]};
  }

  // [x1, x0, x3, x2]
  static Reg SwapPairs(Reg a) { return Reg{a[1], a[0], a[3], a[2]}; }
  // Rows become columns.
  static void Transpose(Reg (&r)[4]) {
    const Reg a = r[0], b = r[1], c = r[2], d = r[3];
    for (int i = 0; i < 4; ++i) r[i] = Reg{a[i], b[i], c[i], d[i]};
  }

  // Inputs 2 * pair and 2 * pair + 1 of groups of four that are stored plus 128.
  static Reg FromByte(Words words, int byte) {
    return __builtin_convertvector(words >> static_cast<uint32_t>(8 * byte) & 0xffU, Reg) - Set(128.0F);
  }
  static void LoadInt8Pairs(const uint8_t* p, int pair, Reg* even, Reg* odd) {
    Words words;
    std::memcpy(&words, p, sizeof(words));
    *even = FromByte(words, 2 * pair);
    *odd = FromByte(words, 2 * pair + 1);
  }

  // 2^round(x) and x - round(x), for |x| <= 126.
  static Reg SplitPower(Reg x, Reg* rest) {
    const Reg shifted = x + Set(12582912.0F);  // 1.5 * 2^23: the sum's low bits are the rounded integer
    const Reg rounded = shifted - Set(12582912.0F);
    *rest = x - rounded;
    return __builtin_bit_cast(Reg, (__builtin_convertvector(rounded, Ints) + 127) << 23);
  }
};

}  // namespace
}  // namespace margay
