// Matrix products over packed weights: one function table per instruction set, chosen at run time.
//
// The body (linear_body.h) is compiled once per instruction set over its vector type (vec/vec_*.h). Within one table the
// result of a row never depends on the other rows of a call: every output is one sum in a fixed order. No std headers
// here: a file compiled for a higher instruction set must not leave inline functions behind that the linker could choose
// for everybody.
#pragma once

#include <cstdint>

namespace margay {

// Outputs that lie together in packed weights.
inline constexpr int kPanel = 16;

// Packed weights are panels of 16 outputs, the last one filled up with zeros. Within a panel, by input k:
//   kBf16  pairs of inputs: [ceil(in / 2)][16 outputs][2]     kF32, kFp8  [in][16 outputs]
enum class WeightFormat : uint8_t { kBf16, kF32, kFp8 };

// y[row, o] = sum over k of x[row, k] * w[o, k], for some panels and rows.
struct MatmulTile {
  const float* x;
  int64_t x_stride;
  const int32_t* x_rows;  // row of x for each row of the tile; null: in order
  int rows;
  const uint8_t* w;       // first panel of the matrix
  const float* scales;    // kFp8: [ceil(out / 128), ceil(in / 128)]
  WeightFormat format;
  int in;
  int first_panel;
  int panels;
  int outputs;            // from first_panel on
  float* y;               // at the first panel's first output
  int64_t y_stride;
};

struct LinearKernels {
  void (*matmul)(const MatmulTile* tile);
};

const LinearKernels* GenericLinear();
#if defined(__x86_64__)
const LinearKernels* Avx2Linear();
const LinearKernels* Avx512Linear();
#endif

}  // namespace margay
