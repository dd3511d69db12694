// Where a weight lies in a packed matrix.
//
// A matrix is cut into panels of 16 outputs, the last one filled up with zeros, and so are the inputs of a panel. The
// layouts suit any vector width: 16 outputs lie side by side, and what shares a word can be split by shifts and masks.
//   kBf16  [in / 2][16 outputs][2 inputs]
//   kF32   [in][16 outputs]
//   kInt8  [in / 4][16 outputs][4 inputs], each value plus 128
//   kFp8   [in / 4][2][16 outputs][2]: inputs 0 and 2 of a group of four share the first 16 words, 1 and 3 the others
#pragma once

#include <cstddef>

#include "kernels/linear/linear.h"

namespace margay {

inline size_t PanelBytes(WeightFormat format, int in) {
  const auto inputs = static_cast<size_t>(in);
  switch (format) {
    case WeightFormat::kBf16: return (inputs + 1) / 2 * kPanel * 4;
    case WeightFormat::kF32: return (inputs + 1) / 2 * kPanel * 8;
    case WeightFormat::kFp8:
    case WeightFormat::kInt8: return (inputs + 3) / 4 * kPanel * 4;
  }
  return 0;
}

// In bytes, within the panel.
inline size_t WeightOffset(WeightFormat format, int lane, int k) {
  const auto l = static_cast<size_t>(lane);
  const auto input = static_cast<size_t>(k);
  switch (format) {
    case WeightFormat::kBf16: return (input / 2 * kPanel + l) * 4 + input % 2 * 2;
    case WeightFormat::kF32: return (input * kPanel + l) * 4;
    case WeightFormat::kInt8: return (input / 4 * kPanel + l) * 4 + input % 4;
    case WeightFormat::kFp8: return input / 4 * kPanel * 4 + input % 2 * kPanel * 2 + l * 2 + input % 4 / 2;
  }
  return 0;
}

}  // namespace margay
