// Checkpoints of any shape with normal values, in memory: a folder whose weight file is a link to anonymous memory, so
// that nothing but empty names is left behind however the process ends.
#pragma once

#include <string>

#include "core/file.h"
#include "core/thread_pool.h"
#include "weights/checkpoint.h"

namespace margay::bench {

struct ModelShape {
  std::string name;
  int layers = 1;
  int hidden = 6144;
  int heads = 64;
  int q_lora = 1536;
  int kv_lora = 512;
  int nope = 128;
  int rope = 64;
  int v_head = 128;
  int ffn = 12288;
  int expert_ffn = 2048;
  int experts = 16;
  int zero_experts = 0;
  int topk = 8;
  int vocabulary = 384;
  int context = 16384;

  // Parameters by what a step does with them.
  double AttentionParameters() const;  // of all layers
  double AbsorbedParameters() const;   // kv_b: part of the attention's
  double DenseParameters() const;      // feed-forward parts and router
  double RouterParameters() const;     // part of the dense ones
  double ExpertParameters() const;     // of one expert
  double HeadParameters() const;
};

// What a step has to read from memory: weights of `weight_bytes` each (head and absorbed ones are bf16, routers fp32) with
// `experts` of every layer, and bf16 KV of `context_rows`. Norms, scales and rows of the embedding are left out: less than 1 %.
double StepBytes(const ModelShape& shape, double weight_bytes, double experts, double context_rows);

// One LongCat layer, with 16 of its experts and no zero experts.
ModelShape LayerSlice();
// As deep as LongCat, and narrow: what a step costs beside its arithmetic.
ModelShape SmallDeep();

class SyntheticCheckpoint {
 public:
  // weights: kBf16, or kFp8 with scales per 128 x 128. Ends the program when there is no memory for it.
  SyntheticCheckpoint(const ModelShape& shape, DType weights, ThreadPool* pool);
  ~SyntheticCheckpoint();
  SyntheticCheckpoint(const SyntheticCheckpoint&) = delete;
  SyntheticCheckpoint& operator=(const SyntheticCheckpoint&) = delete;

  const std::string& folder() const { return folder_; }

 private:
  std::string folder_;
  int memory_ = -1;
};

}  // namespace margay::bench
