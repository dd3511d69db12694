// Runs attention with expanded keys and values (spec 3.2) on all threads: Cut (once per step) -> Run (once per attention).
//
// A thread takes one head of a band of rows, expands the context block by block, and every block serves all of the
// band's rows. That costs latent * (nope + v_head) products per token of context and head, and saves most of those that
// the absorbed form has per pair of a row and a token: worth while for many rows of one sequence.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_plan.h"
#include "kernels/linear/matmul_list.h"

namespace margay {

struct CodePath;

struct ExpandedShape {
  int heads = 0;
  int latent = 0;
  int nope = 0;
  int rope = 0;
  int v_head = 0;

  int qk_head() const { return nope + rope; }
  int expanded() const { return nope + v_head; }
};

// Whether rows of a sequence need fewer products in this form than absorbed.
bool ExpandingPays(const ExpandedShape& shape, const AttentionRows& rows);

class ExpandedList {
 public:
  ExpandedList(const CodePath& path, ThreadPool* pool, const ExpandedShape& shape, int max_rows);

  // Block tables are used until the next Cut.
  void Cut(std::span<const AttentionRows> sequences);
  const ExpandedShape& shape() const { return shape_; }
  bool empty() const { return bands_.empty(); }
  // q: [rows, heads, nope + rope], rotated, as ExpandedTile wants it; pages: of this attention, bf16 [block, 64, latent +
  // rope]; expand: per head, latent -> [nope, v_head]; out: [rows, heads, v_head].
  void Run(const float* q, const uint8_t* pages, std::span<const MatmulWeights> expand, float* out);

 private:
  // What one thread works on.
  struct Memory {
    float* latent;   // [kExpandedTokens, latent]
    float* kv;       // [kExpandedTokens + 16, kv_stride_]
    float* scratch;  // of the kernel
    void* strip;     // packed rows of latent
  };
  Memory MemoryOf(int thread);
  void RunHead(const AttentionRows& band, int head, const Memory& memory);
  void Expand(const int32_t* block_table, int first, int end, const MatmulWeights& w, const Memory& memory) const;

  const LinearKernels* linear_;
  const AttentionKernels* attention_;
  const PointwiseKernels* pointwise_;
  ThreadPool* pool_;
  const ExpandedShape shape_;
  const int64_t kv_stride_;
  std::vector<AttentionRows> bands_;
  int64_t products_ = 0;
  size_t strip_floats_ = 0;
  size_t thread_floats_ = 0;
  std::vector<float> memory_;

  // Of the Run in progress.
  const float* q_ = nullptr;
  const uint8_t* pages_ = nullptr;
  std::span<const MatmulWeights> expand_;
  float* out_ = nullptr;
};

}  // namespace margay
