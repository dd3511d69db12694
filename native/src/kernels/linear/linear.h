// Matrix products over packed weights: one function table per instruction set, chosen at run time.
//
// A product runs in strips: some rows of activations, packed once, times some panels of weights. Weights stream from
// memory while the strip stays in the cache, so that one pass over the weights serves all rows of a strip. No std headers
// here: a file compiled for a higher instruction set must not leave inline functions behind that the linker could choose
// for everybody.
#pragma once

#include <cstdint>

namespace margay {

// Outputs that lie together in packed weights.
inline constexpr int kPanel = 16;
// Side of the blocks of fp8 weights that share a scale.
inline constexpr int kScaleBlock = 128;
// Most rows of a strip, whatever the instruction set.
inline constexpr int kMostStripRows = 16;
inline constexpr int kMostPanels = 8;
// Strips that can share what a kernel makes of the weights.
inline constexpr int kStripsTogether = 16;

// Layouts of packed weights: panel_layout.h.
enum class WeightFormat : uint8_t { kBf16, kF32, kFp8, kInt8 };
inline constexpr int kWeightFormats = 4;

// Rows of activations to be packed for strips.
struct LinearRows {
  const float* x;
  int64_t x_stride;
  const int32_t* x_rows;  // row of x for each row of the strip; null: in order
  int rows;
  int in;
  void* packed;           // at least LinearKernels::packed_bytes(rows, in), aligned to 64 bytes
};

// y[row, o] = sum over k of x[row, k] * w[o, k], for the rows of a strip and some panels.
struct LinearStrip {
  const void* x;          // as packed by `pack` for the same format
  int rows;
  int in;
  const uint8_t* w;       // first panel of the strip
  int64_t panel_bytes;
  const float* scales;    // of the whole matrix; kFp8: [ceil(out / 128), ceil(in / 128)], kInt8: [panels * 16]
  int first_panel;
  int panels;
  int outputs;            // from first_panel on
  float* y;               // at the first panel's first output
  int64_t y_stride;
};

// What packing makes of activations. kInt8: one scale per row, its largest value becoming 127.
enum class Activations : uint8_t { kF32, kInt8 };

// Products with one format of weights.
struct LinearKernel {
  Activations activations;
  int strip_rows;             // most rows of one strip of several
  int lone_rows;              // of a strip that has the weights for itself: at least strip_rows
  int (*panels)(int rows);    // panels that run together in a strip of so many rows: at most kMostPanels
  int64_t (*packed_bytes)(int rows, int in);
  void (*pack)(const LinearRows* rows);
  void (*multiply)(const LinearStrip* strip);
  // The same for up to kStripsTogether strips that differ in x, rows and y alone; null: nothing would be gained.
  void (*multiply_together)(const LinearStrip* strips, int count) = nullptr;
};

// By WeightFormat. Within one kernel the result of a row never depends on the other rows of a call: every output is
// summed in a fixed order.
struct LinearKernels {
  LinearKernel formats[kWeightFormats];
};

const LinearKernels* GenericLinear();
#if defined(__x86_64__)
const LinearKernels* Avx2Linear();
const LinearKernels* Avx512Linear();
// kInt8 alone, by the integer dot product.
const LinearKernel* Avx512VnniLinear();
// kBf16 alone, by the bf16 dot product.
const LinearKernel* Avx512Bf16Linear();
// kBf16 alone, on tiles.
const LinearKernel* AmxLinear();
#elif defined(__aarch64__)
const LinearKernels* NeonLinear();
#endif

}  // namespace margay
