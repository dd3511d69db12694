// Rows to e4m3 and back, for instruction sets without a form of their own.
#pragma once

#include <cstdint>

namespace margay {
namespace {

// 1 sign, 4 exponent bits with bias 7, 3 mantissa bits. Plain loops over bits: compilers make vectors of them.
constexpr uint32_t kLeastNormalFp8 = (127 - 6) << 23;  // 2^-6 as float
constexpr uint32_t kTinyFp8 = (127 - 100) << 23;
constexpr float kRoundToInt = 12582912.0F;             // 1.5 * 2^23: added, the last bit is worth one

float ToFp8(const float* x, int n, uint8_t* y) {
  uint32_t most = 0;  // magnitudes order as integers do
  for (int i = 0; i < n; ++i) {
    const uint32_t magnitude = __builtin_bit_cast(uint32_t, x[i]) & 0x7fffffffU;
    most = magnitude > most ? magnitude : most;
  }
  // Nothing that small counts.
  const float largest = most > kTinyFp8 ? __builtin_bit_cast(float, most) : 448.0F;
  const float inverse = 448.0F / largest;
  for (int i = 0; i < n; ++i) {
    const float v = x[i] * inverse;
    const uint32_t bits = __builtin_bit_cast(uint32_t, v);
    const uint32_t magnitude = bits & 0x7fffffffU;
    // Bias 127 becomes 7, and 23 mantissa bits 3.
    const uint32_t normal = ((magnitude + 0x7ffffU + (magnitude >> 20 & 1U)) >> 20) - (120U << 3);
    const float small = __builtin_bit_cast(float, magnitude) * 512.0F + kRoundToInt;
    const uint32_t denormal = __builtin_bit_cast(uint32_t, small) & 0xfU;
    const uint32_t code = magnitude < kLeastNormalFp8 ? denormal : normal;
    y[i] = static_cast<uint8_t>((magnitude > 0x7f800000U ? 0x7fU : code) | (bits >> 24 & 0x80U));
  }
  return largest / 448.0F;
}

void FromFp8(const uint8_t* x, float scale, int n, float* y) {
  for (int i = 0; i < n; ++i) {
    const uint32_t code = x[i];
    const uint32_t magnitude = code & 0x7fU;
    const float normal = __builtin_bit_cast(float, (magnitude << 20) + (120U << 23));
    const float denormal = static_cast<float>(static_cast<int32_t>(magnitude)) * (1.0F / 512.0F);
    const float value = magnitude < 8U ? denormal : normal;
    const uint32_t bits = magnitude == 0x7fU ? 0x7fc00000U : __builtin_bit_cast(uint32_t, value);
    y[i] = __builtin_bit_cast(float, bits | (code & 0x80U) << 24) * scale;
  }
}

}  // namespace
}  // namespace margay
