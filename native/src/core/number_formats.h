// Conversions between the number formats of checkpoints, KV pools and packed weights.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace margay {

inline float Bf16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// To nearest, ties to even; not-a-number stays one.
inline uint16_t FloatToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>(bits >> 16 | 0x40U);
  return static_cast<uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

// Value of every float8 e4m3 (fn) code: 1 sign, 4 exponent bits with bias 7, 3 mantissa bits; 0x7f and 0xff are NaN.
inline constexpr std::array<float, 256> kFp8Values = [] {
  std::array<float, 256> values{};
  for (size_t code = 0; code < 256; ++code) {
    const auto exponent = static_cast<int>(code >> 3 & 15U);
    const auto mantissa = static_cast<float>(code & 7U) / 8;
    float value = exponent == 0 ? mantissa : 1 + mantissa;
    for (int e = exponent == 0 ? 1 : exponent; e > 7; --e) value *= 2;
    for (int e = exponent == 0 ? 1 : exponent; e < 7; ++e) value /= 2;
    if ((code & 0x7fU) == 0x7fU) value = std::bit_cast<float>(0x7fc00000U);
    values[code] = (code & 0x80U) != 0 ? -value : value;
  }
  return values;
}();

// To nearest, ties to even; |value| <= 464, or not a number.
inline uint8_t FloatToFp8(float value) {
  if (std::isnan(value)) return 0x7f;
  const float magnitude = std::fabs(value);
  const int exponent = std::max(-6, magnitude > 0 ? std::ilogb(magnitude) : -6);
  const auto mantissa = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));  // leading one included
  return static_cast<uint8_t>((std::signbit(value) ? 0x80 : 0) | ((exponent + 6) * 8 + mantissa));
}

}  // namespace margay
