// Runs the absorbed attention of one step on all threads: Cut (once per step) -> Run (once per attention).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_plan.h"

namespace margay {

struct AttentionShape {
  int heads = 0;
  int latent = 0;
  int rope = 0;

  int width() const { return latent + rope; }
};

class AttentionList {
 public:
  AttentionList(const AttentionKernels* kernels, ThreadPool* pool, const AttentionShape& shape, int max_rows);

  // By ascending first_row. Block tables are used until the next Cut.
  void Cut(std::span<const AttentionRows> sequences) { plan_.Cut(sequences); }
  // q: [rows, heads, q_stride], as AttentionTile wants it; pages: of this attention, bf16 [block, 64, latent + rope];
  // out: [rows, heads, latent].
  void Run(const float* q, int64_t q_stride, const uint8_t* pages, float* out);

 private:
  // Where the sums of a tile's queries over one part go.
  struct Place {
    float* out;
    float* top;
    float* sum;
  };
  void RunItem(const AttentionPlan::Item& item, int thread);
  void RunMerge(const AttentionPlan::Merge& merge);
  void RunPart(const AttentionGroup& tile, int part, const Place& to, int thread);
  void MergePart(const AttentionGroup& tile, int first, int count, const Place& part);
  void Normalise(const AttentionGroup& tile, int first, int count);
  int Query(const AttentionGroup& tile, int i) const { return plan_.order()[static_cast<size_t>(tile.order + i)]; }
  Place PlaceOf(int query);
  Place SlotOf(const AttentionGroup& tile, int part);

  const AttentionKernels* kernels_;
  ThreadPool* pool_;
  const AttentionShape shape_;
  AttentionPlan plan_;

  std::vector<float> top_, sum_;                          // per query
  std::vector<float> apart_out_, apart_top_, apart_sum_;  // per slot
  std::vector<float> memory_;                             // per thread: scratch of the kernel, then one part's sums
  size_t thread_floats_ = 0;

  // Of the Run in progress.
  const float* q_ = nullptr;
  int64_t q_stride_ = 0;
  const uint8_t* pages_ = nullptr;
  float* out_ = nullptr;
};

}  // namespace margay
