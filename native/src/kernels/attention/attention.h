// Latent attention over pages: one function table per instruction set, chosen at run time.
//
// The body (attention_body.h) is compiled once per instruction set over its vector type (vec/vec_*.h). Within one table
// the bits of a query never depend on the other queries of a call. No std headers here (see linear/linear.h).
#pragma once

#include <cstdint>

namespace margay {

inline constexpr int kTileTokens = 64;         // one page
inline constexpr int kAttentionQueries = 256;  // most of one tile

// Attention of some queries over a stretch of context that lies in the same latent KV pages for all of them, in absorbed
// form (spec 3.5), with online softmax. The sums are left as they are, so that stretches can be merged:
//   top = max of the scores, sum = sum of 2^(score - top), out = sum of 2^(score - top) * latent; sum = 0: saw nothing.
struct AttentionTile {
  const float* q;           // [rows, q_stride]: latent and rotary part, multiplied by softmax scale * log2(e)
  int64_t q_stride;
  const int32_t* queries;   // [count]: rows of q
  int count;                // at most kAttentionQueries
  const int32_t* visible;   // [rows of q]: tokens a query sees, from the start of its sequence
  const uint8_t* pages;     // of this attention: bf16 rows [latent, rope]
  int64_t page_bytes;
  const int32_t* block_table;
  int latent;
  int rope;
  int first;                // the stretch: tokens [first, end) of the sequence, from the start of a page
  int end;
  float* out;               // [count, out_stride]
  int64_t out_stride;
  float* top;               // [count]
  float* sum;               // [count]
  float* scratch;           // AttentionScratch(latent, rope) floats, at a multiple of 64 bytes
};

// A page, its scores and weights, the tile's queries and sums, each filled up to what a code path works on at once.
constexpr int64_t AttentionScratch(int latent, int rope) {
  const int64_t width = (latent + rope + 31) / 32 * 32;
  const int64_t sums = (latent + 15) / 16 * 16;
  return (kTileTokens + 16) * (width + 64) + kTileTokens * 64 + kAttentionQueries * (width + sums + 3);
}

// A weighted sum over one stretch of context; the next stretch is merged into it.
struct AttentionSum {
  float* out;  // [latent]
  float* top;
  float* sum;
};

inline constexpr int kExpandedRows = 512;    // most of one tile
inline constexpr int kExpandedTokens = 128;  // most of one block of keys and values, a whole number of pages

// Attention of rows of one sequence with one head, over a block of context whose keys and values have been expanded from
// the latent (spec 3.2). Blocks follow each other from token 0 on; out, top and sum carry what they have added up.
struct ExpandedTile {
  const float* q;        // [rows, q_stride]: nope, then rotary part, multiplied by softmax scale * log2(e)
  int64_t q_stride;
  int rows;              // at most kExpandedRows
  int position;          // row i sees the tokens [0, position + i]
  const float* kv;       // [tokens, kv_stride]: rotary part, nope part, value; the last one filled up to 16 values
  int64_t kv_stride;     // ExpandedStride(...)
  int nope;
  int rope;
  int v_head;
  int first;             // tokens [first, end)
  int end;
  bool last;             // no block follows: normalise
  float* out;            // [rows, out_stride]
  int64_t out_stride;
  float* scratch;        // ExpandedScratch(...) floats, at a multiple of 64 bytes; kept from block to block
};

constexpr int64_t ExpandedStride(int nope, int rope, int v_head) { return (rope + nope + v_head + 31) / 16 * 16; }
// The rows' queries, filled up; top, sum and factors; scores.
constexpr int64_t ExpandedScratch(int nope, int rope) {
  return kExpandedRows * (int64_t{nope} + rope + 3) + (kTileTokens + 16) * 64;
}

struct AttentionKernels {
  void (*attend)(const AttentionTile* tile);
  void (*attend_expanded)(const ExpandedTile* tile);
  // into = into and part together.
  void (*merge)(const AttentionSum* into, const AttentionSum* part, int latent);
  // out /= sum.
  void (*normalise)(const AttentionSum* of, int latent);
  // Rotary embedding of n values (spec 3.3): y[i] = x[i] * cosine[i] + x[i ^ 1] * sine[i]; y may be x.
  // cosine: [n], each pair's twice; sine: [n], each pair's negative, then positive.
  void (*rotate)(const float* x, const float* cosine, const float* sine, int n, float* y);
};

const AttentionKernels* GenericAttention();
#if defined(__x86_64__)
const AttentionKernels* Avx2Attention();
const AttentionKernels* Avx512Attention();
const AttentionKernels* AmxAttention();
#elif defined(__aarch64__)
const AttentionKernels* NeonAttention();
#endif

}  // namespace margay
