// Rows as they travel: encoded by who sends them, decoded or added up by who receives them.
#pragma once

#include "comm/exchange.h"

namespace margay {

void EncodePayload(PayloadFormat format, const float* values, int hidden, std::byte* out);
void DecodePayload(PayloadFormat format, const std::byte* row, int hidden, float* out);
// What the receiver would decode.
void RoundPayload(PayloadFormat format, const float* values, int hidden, float* out);

// Results are bf16, or fp32 where payload is.
void EncodeResult(PayloadFormat format, const float* values, int hidden, std::byte* out);
// out += weight * row
void AddResult(PayloadFormat format, const std::byte* row, float weight, int hidden, float* out);
void AddRow(const float* row, int hidden, float* out);

}  // namespace margay
