// The weights of the cpu backend: bf16 (or fp8, fp32) matrices in panels, vectors in fp32.
//
// Folded at load (spec 3.2): q_a_layernorm carries s_q, the softmax scale and log2(e); kv_a_layernorm carries s_kv.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/linear/matmul_list.h"
#include "model/model.h"
#include "model/model_config.h"
#include "model/model_tensors.h"
#include "model/packed_matrix.h"
#include "weights/checkpoint.h"
#include "weights/packed_weights.h"

namespace margay {

struct CpuMlp {
  MatmulWeights gate, up, down;
};

struct CpuAttention {
  const float *input_norm, *q_a_norm, *kv_a_norm, *post_norm;
  MatmulWeights q_a, q_b, kv_a, o;
  std::vector<MatmulWeights> key;     // per head: query part [nope] -> latent
  std::vector<MatmulWeights> value;   // per head: latent -> [v_head]
  std::vector<MatmulWeights> expand;  // per head: latent -> [nope, v_head]
};

struct CpuLayer {
  CpuAttention attention[2];
  CpuMlp mlp[2];
  MatmulWeights router;
  const float* correction_bias;
  std::vector<CpuMlp> experts;
};

// A table of embeddings, [vocab, hidden].
struct CpuTable {
  const std::byte* rows = nullptr;
  bool is_f32 = false;  // else bf16
};

// The draft layer; its attention and mlp are those of the first half of layer number `layers`.
struct CpuDraft {
  CpuTable embedding;
  const float *embedding_norm, *hidden_norm, *norm;
  MatmulWeights join;
};

// Planned -> bound: the accessors are valid from Bind on.
class CpuWeights {
 public:
  CpuWeights(const ModelConfig& config, WeightChoice choice) : c_(config), choice_(choice) {}

  // Pointers into `checkpoint` and `tensors` are used until the plan is carried out.
  void Plan(const Checkpoint& checkpoint, const ModelTensors& tensors, PackPlan* plan);
  void Bind(const std::byte* base);

  const CpuTable& embedding() const { return embedding_; }
  const float* norm() const { return norm_; }
  const MatmulWeights& head() const { return head_; }
  const CpuLayer& layer(int layer) const { return layers_[static_cast<size_t>(layer)]; }
  bool has_draft() const { return has_draft_; }
  const CpuDraft& draft() const { return draft_; }

 private:
  struct AttentionOffsets {
    size_t input_norm, q_a_norm, kv_a_norm, post_norm;
    PackedMatrix q_a, q_b, kv_a, o;
    std::vector<PackedMatrix> key, value, expand;
  };
  struct MlpOffsets {
    PackedMatrix gate, up, down;
  };
  struct LayerOffsets {
    AttentionOffsets attention[2];
    MlpOffsets mlp[2];
    PackedMatrix router;
    size_t correction_bias;
    std::vector<MlpOffsets> experts;
  };
  struct DraftOffsets {
    size_t embedding, embedding_norm, hidden_norm, norm;
    PackedMatrix join;
  };

  AttentionOffsets PlanAttention(const Checkpoint& checkpoint, const AttentionTensors& tensors, PackPlan* plan) const;
  MlpOffsets PlanMlp(const Checkpoint& checkpoint, const MlpTensors& tensors, PackPlan* plan) const;
  // In the precision that was chosen.
  PackedMatrix PlanLinear(const Checkpoint& checkpoint, const LinearTensors& tensors, PackPlan* plan) const;
  void PlanDraft(const Checkpoint& checkpoint, const ModelTensors& tensors, PackPlan* plan);

  const ModelConfig c_;
  const WeightChoice choice_;
  bool has_draft_ = false;
  size_t embedding_offset_ = 0;
  size_t norm_offset_ = 0;
  PackedMatrix head_offset_;
  std::vector<LayerOffsets> offsets_;  // the draft layer's last
  DraftOffsets draft_offsets_{};
  CpuTable embedding_;
  const float* norm_ = nullptr;
  MatmulWeights head_;
  std::vector<CpuLayer> layers_;
  CpuDraft draft_{};
};

}  // namespace margay
