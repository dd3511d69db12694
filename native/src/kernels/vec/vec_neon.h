// Four floats: the vector instructions that every 64-bit ARM processor has.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace margay {
namespace {

struct Vec {
  using Reg = float32x4_t;
  static constexpr int kWidth = 4;
  static constexpr int kQueries = 4;
  static constexpr int kScores = 16;
  static constexpr int kValues = 4;

  static Reg Zero() { return vdupq_n_f32(0); }
  static Reg Set(float a) { return vdupq_n_f32(a); }
  static Reg Load(const float* p) { return vld1q_f32(p); }
  static Reg LoadSome(const float* p, int n) {
    float some[4] = {};
    for (int i = 0; i < n; ++i) some[i] = p[i];
    return vld1q_f32(some);
  }
  static void Store(float* p, Reg a) { vst1q_f32(p, a); }
  static void StoreSome(float* p, Reg a, int n) {
    float some[4];
    vst1q_f32(some, a);
    for (int i = 0; i < n; ++i) p[i] = some[i];
  }
  static Reg Fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  // *sum += a * b
  static void AddProduct(Reg* sum, Reg a, Reg b) { *sum = vfmaq_f32(*sum, a, b); }
  static Reg Add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static Reg Sub(Reg a, Reg b) { return vsubq_f32(a, b); }
  static Reg Mul(Reg a, Reg b) { return vmulq_f32(a, b); }
  static Reg Div(Reg a, Reg b) { return vdivq_f32(a, b); }
  // Of not-a-number and b: b, as elsewhere.
  static Reg Max(Reg a, Reg b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static Reg Min(Reg a, Reg b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static bool AnyGreater(Reg a, Reg b) { return vmaxvq_u32(vcgtq_f32(a, b)) != 0; }
  static bool AnyAtLeast(Reg a, Reg b) { return vmaxvq_u32(vcgeq_f32(a, b)) != 0; }
  static float Sum(Reg a) { return vaddvq_f32(a); }
  static float Highest(Reg a) { return vmaxvq_f32(a); }

  static Reg LoadBf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  static Reg LoadBf16Some(const uint16_t* p, int n) {
    uint16_t some[4] = {};
    for (int i = 0; i < n; ++i) some[i] = p[i];
    return LoadBf16(some);
  }
  static void StoreBf16Some(uint16_t* p, Reg a, int n) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t top = vshrq_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    uint16_t some[4];
    vst1_u16(some, vmovn_u32(vbslq_u32(vceqq_f32(a, a), top, vdupq_n_u32(0x7fc0))));
    for (int i = 0; i < n; ++i) p[i] = some[i];
  }
  static void StoreBf16Two(uint16_t* p, Reg first, Reg second) {
    StoreBf16Some(p, first, kWidth);
    StoreBf16Some(p + kWidth, second, kWidth);
  }
  static void LoadPairs(const uint8_t* p, Reg* even, Reg* odd) {
    const uint32x4_t words = vreinterpretq_u32_u8(vld1q_u8(p));
    *even = vreinterpretq_f32_u32(vshlq_n_u32(words, 16));
    *odd = vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff0000U)));
  }
  // 4 words of two e4m3 codes each, at p and 32 bytes on: the low codes (pair 0) or the high ones (pair 1), to be
  // multiplied by kFp8Factor. e4m3 is fp16 with a shorter mantissa and an exponent bias that is 8 lower.
  static constexpr float kFp8Factor = 256;
  static Reg Fp8Codes(const uint8_t* p, int pair) {
    const uint16x4_t words = vreinterpret_u16_u8(vld1_u8(p));
    const uint16x4_t codes = pair == 0 ? words : vshr_n_u16(words, 8);
    const uint16x4_t sign = vshl_n_u16(codes, 8);
    const uint16x4_t rest = vshl_n_u16(vand_u16(codes, vdup_n_u16(0x7f)), 7);
    return vcvt_f32_f16(vreinterpret_f16_u16(vbsl_u16(vdup_n_u16(0x8000), sign, rest)));
  }
  static void LoadFp8Pairs(const uint8_t* p, int pair, Reg* even, Reg* odd) {
    *even = Fp8Codes(p, pair);
    *odd = Fp8Codes(p + 32, pair);
  }

  // [x1, x0, x3, x2]
  static Reg SwapPairs(Reg a) { return vrev64q_f32(a); }
  // Rows become columns.
  static void Transpose(Reg (&r)[4]) {
    const float32x4x2_t a = vzipq_f32(r[0], r[2]);
    const float32x4x2_t b = vzipq_f32(r[1], r[3]);
    const float32x4x2_t low = vzipq_f32(a.val[0], b.val[0]);
    const float32x4x2_t high = vzipq_f32(a.val[1], b.val[1]);
    r[0] = low.val[0];
    r[1] = low.val[1];
    r[2] = high.val[0];
    r[3] = high.val[1];
  }

  // Inputs 2 * pair and 2 * pair + 1 of groups of four that are stored plus 128.
  static Reg FromByte(uint32x4_t words, int byte) {
    const uint32x4_t value = vandq_u32(vshlq_u32(words, vdupq_n_s32(-8 * byte)), vdupq_n_u32(0xff));
    return vsubq_f32(vcvtq_f32_u32(value), vdupq_n_f32(128.0F));
  }
  static void LoadInt8Pairs(const uint8_t* p, int pair, Reg* even, Reg* odd) {
    const uint32x4_t words = vreinterpretq_u32_u8(vld1q_u8(p));
    *even = FromByte(words, 2 * pair);
    *odd = FromByte(words, 2 * pair + 1);
  }

  // 2^round(x) and x - round(x), for |x| <= 126.
  static Reg SplitPower(Reg x, Reg* rest) {
    const int32x4_t n = vcvtnq_s32_f32(x);
    *rest = vsubq_f32(x, vcvtq_f32_s32(n));
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
  }
};

}  // namespace
}  // namespace margay
