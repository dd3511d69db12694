// The vector kernels of the cpu backend: one table per instruction set, chosen at run time.
//
// The same bodies (matmul_body.h, attention_body.h, pointwise_body.h) are compiled once per instruction set over its
// vector type (vec_*.h). Within one table the result of a row never depends on the other rows of a call: every output
// is one sum in a fixed order. No std headers here: a file compiled for a higher instruction set must not leave inline
// functions behind that the linker could choose for everybody.
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

inline constexpr int kAttentionQueries = 16;  // most of one tile
inline constexpr int kTileTokens = 64;        // one page

// Attention of some queries of one sequence over its latent KV pages, in absorbed form (spec 3.5), with online softmax.
struct AttentionTile {
  const float* q;           // [queries, q_stride]: latent and rotary part, multiplied by softmax scale * log2(e)
  int64_t q_stride;
  int queries;              // at most kAttentionQueries
  const int32_t* visible;   // per query: tokens it sees, not falling
  const uint8_t* pages;     // of this attention: bf16 rows [latent, rope]
  int64_t page_bytes;
  const int32_t* block_table;
  int latent;
  int rope;
  float* out;               // [queries, out_stride]: latent values
  int64_t out_stride;
  float* scratch;           // kAttentionScratch floats
};
inline constexpr int kAttentionScratch = kAttentionQueries * kTileTokens + 2 * kAttentionQueries;

struct CpuKernels {
  void (*matmul)(const MatmulTile* tile);
  void (*attention)(const AttentionTile* tile);
  // y = weight * x / sqrt(mean(x^2) + eps)
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* y);
  // x += y
  void (*add)(float* x, const float* y, int n);
  // x += a * y
  void (*add_scaled)(float* x, float a, const float* y, int n);
  // y = silu(gate) * up
  void (*silu_mul)(const float* gate, const float* up, int n, float* y);
  void (*softmax)(float* x, int n);
  void (*to_bf16)(const float* x, int n, uint16_t* y);
  void (*from_bf16)(const uint16_t* x, int n, float* y);
};

const CpuKernels* GenericKernels();
#if defined(__x86_64__)
const CpuKernels* Avx2Kernels();
const CpuKernels* Avx512Kernels();
#endif

}  // namespace margay
