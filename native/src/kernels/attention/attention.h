// Latent attention over pages: one function table per instruction set, chosen at run time.
//
// The body (attention_body.h) is compiled once per instruction set over its vector type (vec/vec_*.h). Within one table
// the result of a query never depends on the other queries of a call. No std headers here (see linear/linear.h).
#pragma once

#include <cstdint>

namespace margay {

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

struct AttentionKernels {
  void (*attend)(const AttentionTile* tile);
};

const AttentionKernels* GenericAttention();
#if defined(__x86_64__)
const AttentionKernels* Avx2Attention();
const AttentionKernels* Avx512Attention();
#endif

}  // namespace margay
