#include "comm/row_format.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/number_formats.h"

namespace margay {
namespace {

constexpr int kScaled = 128;  // values that share a scale
constexpr float kMostFp8 = 448;

size_t Scales(int hidden) { return (static_cast<size_t>(hidden) + kScaled - 1) / kScaled; }

// To nearest, ties to even; |value| <= 448.
uint8_t FloatToFp8(float value) {
  const float magnitude = std::fabs(value);
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (!(magnitude == magnitude)) return 0x7f;
  const int exponent = std::max(-6, magnitude > 0 ? std::ilogb(magnitude) : -6);
  const auto code = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));  // mantissa with leading one
  return static_cast<uint8_t>(sign | ((exponent + 6) * 8 + code));
}

void EncodeFp8(const float* values, int hidden, std::byte* out) {
  std::byte* scales = out + hidden;
  for (int first = 0; first < hidden; first += kScaled) {
    const int end = std::min(hidden, first + kScaled);
    float most = 0;
    for (int i = first; i < end; ++i) most = std::max(most, std::fabs(values[i]));
    const float scale = most > 0 ? most / kMostFp8 : 1;
    for (int i = first; i < end; ++i) out[i] = static_cast<std::byte>(FloatToFp8(values[i] / scale));
    std::memcpy(scales, &scale, sizeof scale);
    scales += sizeof scale;
  }
}

void DecodeFp8(const std::byte* row, int hidden, float* out) {
  const std::byte* scales = row + hidden;
  for (int first = 0; first < hidden; first += kScaled) {
    float scale;
    std::memcpy(&scale, scales, sizeof scale);
    scales += sizeof scale;
    for (int i = first; i < std::min(hidden, first + kScaled); ++i)
      out[i] = kFp8Values[static_cast<uint8_t>(row[i])] * scale;
  }
}

}  // namespace

size_t PayloadBytes(PayloadFormat format, int hidden) {
  const auto n = static_cast<size_t>(hidden);
  switch (format) {
    case PayloadFormat::kBf16: return 2 * n;
    case PayloadFormat::kFp8: return n + Scales(hidden) * sizeof(float);
    case PayloadFormat::kFp32: return 4 * n;
  }
  return 0;
}

size_t ResultBytes(PayloadFormat format, int hidden) {
  return static_cast<size_t>(hidden) * (format == PayloadFormat::kFp32 ? 4 : 2);
}

void EncodePayload(PayloadFormat format, const float* values, int hidden, std::byte* out) {
  if (format == PayloadFormat::kFp8) return EncodeFp8(values, hidden, out);
  EncodeResult(format, values, hidden, out);
}

void DecodePayload(PayloadFormat format, const std::byte* row, int hidden, float* out) {
  if (format == PayloadFormat::kFp8) return DecodeFp8(row, hidden, out);
  if (format == PayloadFormat::kFp32) {
    std::memcpy(out, row, static_cast<size_t>(hidden) * sizeof(float));
    return;
  }
  const auto* bits = reinterpret_cast<const uint16_t*>(row);
  for (int i = 0; i < hidden; ++i) out[i] = Bf16ToFloat(bits[i]);
}

void RoundPayload(PayloadFormat format, const float* values, int hidden, float* out) {
  alignas(4) std::byte row[kScaled * sizeof(float) + sizeof(float)];
  for (int first = 0; first < hidden; first += kScaled) {
    const int some = std::min(kScaled, hidden - first);
    EncodePayload(format, values + first, some, row);
    DecodePayload(format, row, some, out + first);
  }
}

void EncodeResult(PayloadFormat format, const float* values, int hidden, std::byte* out) {
  if (format == PayloadFormat::kFp32) {
    std::memcpy(out, values, static_cast<size_t>(hidden) * sizeof(float));
    return;
  }
  auto* bits = reinterpret_cast<uint16_t*>(out);
  for (int i = 0; i < hidden; ++i) bits[i] = FloatToBf16(values[i]);
}

void AddResult(PayloadFormat format, const std::byte* row, float weight, int hidden, float* out) {
  if (format == PayloadFormat::kFp32) {
    const auto* values = reinterpret_cast<const float*>(row);
    for (int i = 0; i < hidden; ++i) out[i] += weight * values[i];
    return;
  }
  const auto* bits = reinterpret_cast<const uint16_t*>(row);
  for (int i = 0; i < hidden; ++i) out[i] += weight * Bf16ToFloat(bits[i]);
}

void AddRow(const float* row, int hidden, float* out) {
  for (int i = 0; i < hidden; ++i) out[i] += row[i];
}

}  // namespace margay
