// Rows as they travel: encoded by who sends them, decoded or added up by who receives them.
#pragma once

#include "comm/exchange.h"
#include "kernels/pointwise/pointwise.h"

namespace margay {

class RowFormat {
 public:
  RowFormat(PayloadFormat format, int hidden);

  void EncodePayload(const float* values, std::byte* out) const;
  void DecodePayload(const std::byte* row, float* out) const;
  // What a receiver would decode.
  void RoundPayload(const float* values, float* out) const;

  // Results are bf16, or fp32 where payload is.
  void EncodeResult(const float* values, std::byte* out) const;
  // out += weight * row
  void AddResult(const std::byte* row, float weight, float* out) const;
  void AddRow(const float* row, float* out) const { kernels_->add_scaled(row, 1, hidden_, out); }

 private:
  const PayloadFormat format_;
  const int hidden_;
  const PointwiseKernels* const kernels_;
};

}  // namespace margay
