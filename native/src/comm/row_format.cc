#include "comm/row_format.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/code_path.h"

namespace margay {
namespace {

constexpr int kScaled = 128;  // values that share a scale

size_t Scales(int hidden) { return (static_cast<size_t>(hidden) + kScaled - 1) / kScaled; }

// Row-wise operations are the same on every path of an instruction set, so that no timing decides.
const PointwiseKernels* Kernels() {
  static const PointwiseKernels* const kBest = UsableCodePaths().back().pointwise;
  return kBest;
}

uint8_t* Codes(std::byte* row) { return reinterpret_cast<uint8_t*>(row); }
uint16_t* Bits(std::byte* row) { return reinterpret_cast<uint16_t*>(row); }
const uint8_t* Codes(const std::byte* row) { return reinterpret_cast<const uint8_t*>(row); }
const uint16_t* Bits(const std::byte* row) { return reinterpret_cast<const uint16_t*>(row); }

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

RowFormat::RowFormat(PayloadFormat format, int hidden) : format_(format), hidden_(hidden), kernels_(Kernels()) {}

void RowFormat::EncodePayload(const float* values, std::byte* out) const {
  if (format_ != PayloadFormat::kFp8) return EncodeResult(values, out);
  std::byte* scales = out + hidden_;
  for (int first = 0; first < hidden_; first += kScaled, scales += sizeof(float)) {
    const float scale = kernels_->to_fp8(values + first, std::min(kScaled, hidden_ - first), Codes(out) + first);
    std::memcpy(scales, &scale, sizeof scale);
  }
}

void RowFormat::DecodePayload(const std::byte* row, float* out) const {
  switch (format_) {
    case PayloadFormat::kBf16: kernels_->from_bf16(Bits(row), hidden_, out); break;
    case PayloadFormat::kFp32: std::memcpy(out, row, static_cast<size_t>(hidden_) * sizeof(float)); break;
    case PayloadFormat::kFp8: {
      const std::byte* scales = row + hidden_;
      for (int first = 0; first < hidden_; first += kScaled, scales += sizeof(float)) {
        float scale;
        std::memcpy(&scale, scales, sizeof scale);
        kernels_->from_fp8(Codes(row) + first, scale, std::min(kScaled, hidden_ - first), out + first);
      }
    }
  }
}

void RowFormat::RoundPayload(const float* values, float* out) const {
  std::array<uint16_t, kScaled> row;
  if (format_ == PayloadFormat::kFp32) std::memcpy(out, values, static_cast<size_t>(hidden_) * sizeof(float));
  for (int first = 0; first < hidden_ && format_ != PayloadFormat::kFp32; first += kScaled) {
    const int some = std::min(kScaled, hidden_ - first);
    if (format_ == PayloadFormat::kBf16) {
      kernels_->to_bf16(values + first, some, row.data());
      kernels_->from_bf16(row.data(), some, out + first);
    } else {
      auto* const codes = reinterpret_cast<uint8_t*>(row.data());
      const float scale = kernels_->to_fp8(values + first, some, codes);
      kernels_->from_fp8(codes, scale, some, out + first);
    }
  }
}

void RowFormat::EncodeResult(const float* values, std::byte* out) const {
  if (format_ == PayloadFormat::kFp32) {
    std::memcpy(out, values, static_cast<size_t>(hidden_) * sizeof(float));
  } else {
    kernels_->to_bf16(values, hidden_, Bits(out));
  }
}

void RowFormat::AddResult(const std::byte* row, float weight, float* out) const {
  if (format_ == PayloadFormat::kFp32) {
    // Rounded twice, as `ref` does it on any machine.
    const auto* values = reinterpret_cast<const float*>(row);
    for (int i = 0; i < hidden_; ++i) out[i] += weight * values[i];
  } else {
    kernels_->add_bf16(Bits(row), weight, hidden_, out);
  }
}

}  // namespace margay
