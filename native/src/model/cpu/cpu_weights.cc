#include "model/cpu/cpu_weights.h"

#include <numbers>

namespace margay {

void CpuWeights::Plan(const Checkpoint& checkpoint, const ModelTensors& tensors, PackPlan* plan) {
  const auto vector = [&](const Tensor* from) { return PackVector(checkpoint, *from, 1, plan); };
  embedding_.is_f32 = tensors.embedding->dtype == DType::kF32;
  embedding_offset_ = PackTable(checkpoint, *tensors.embedding, plan);
  norm_offset_ = vector(tensors.norm);
  head_offset_ = PackLinear(checkpoint, tensors.head, plan);
  for (const LayerTensors& from : tensors.layers) {
    LayerOffsets& layer = offsets_.emplace_back();
    for (int half = 0; half < 2; ++half) {
      layer.attention[half] = PlanAttention(checkpoint, from.attention[half], plan);
      layer.mlp[half] = PlanMlp(checkpoint, from.mlp[half], plan);
    }
    layer.router = PackLinear(checkpoint, from.router, plan);
    layer.correction_bias = vector(from.correction_bias);
    for (const MlpTensors& expert : from.experts) layer.experts.push_back(PlanMlp(checkpoint, expert, plan));
  }
  if (tensors.draft.has_value()) PlanDraft(checkpoint, tensors, plan);
}

void CpuWeights::PlanDraft(const Checkpoint& checkpoint, const ModelTensors& tensors, PackPlan* plan) {
  const DraftTensors& from = *tensors.draft;
  const auto vector = [&](const Tensor* tensor) { return PackVector(checkpoint, *tensor, 1, plan); };
  has_draft_ = true;
  draft_.embedding.is_f32 = from.embedding->dtype == DType::kF32;
  const bool shared = from.embedding == tensors.embedding;
  draft_offsets_.embedding = shared ? embedding_offset_ : PackTable(checkpoint, *from.embedding, plan);
  draft_offsets_.embedding_norm = vector(from.embedding_norm);
  draft_offsets_.hidden_norm = vector(from.hidden_norm);
  draft_offsets_.norm = vector(from.norm);
  draft_offsets_.join = PackLinear(checkpoint, from.join, plan);
  LayerOffsets& layer = offsets_.emplace_back();
  layer.attention[0] = PlanAttention(checkpoint, from.attention, plan);
  layer.mlp[0] = PlanMlp(checkpoint, from.mlp, plan);
}

CpuWeights::AttentionOffsets CpuWeights::PlanAttention(const Checkpoint& checkpoint, const AttentionTensors& from,
                                                       PackPlan* plan) const {
  const auto linear = [&](const LinearTensors& tensors) { return PlanLinear(checkpoint, tensors, plan); };
  const auto vector = [&](const Tensor* tensor, float factor) { return PackVector(checkpoint, *tensor, factor, plan); };
  AttentionOffsets a;
  a.input_norm = vector(from.input_norm, 1);
  a.q_a_norm = vector(from.q_a_norm, c_.q_scale() * c_.SoftmaxScale() * std::numbers::log2e_v<float>);
  a.kv_a_norm = vector(from.kv_a_norm, c_.kv_scale());
  a.post_norm = vector(from.post_norm, 1);
  a.q_a = linear(from.q_a);
  a.q_b = linear(from.q_b);
  a.kv_a = linear(from.kv_a);
  a.o = linear(from.o);
  for (int head = 0; head < c_.heads; ++head) {
    const int first = head * (c_.nope + c_.v_head);
    a.key.push_back(PackRows(checkpoint, from.kv_b, first, c_.nope, true, plan));
    a.value.push_back(PackRows(checkpoint, from.kv_b, first + c_.nope, c_.v_head, false, plan));
    a.expand.push_back(PackRows(checkpoint, from.kv_b, first, c_.nope + c_.v_head, false, plan));
  }
  return a;
}

CpuWeights::MlpOffsets CpuWeights::PlanMlp(const Checkpoint& checkpoint, const MlpTensors& from, PackPlan* plan) const {
  return {PlanLinear(checkpoint, from.gate, plan), PlanLinear(checkpoint, from.up, plan), PlanLinear(checkpoint, from.down, plan)};
}

PackedMatrix CpuWeights::PlanLinear(const Checkpoint& checkpoint, const LinearTensors& from, PackPlan* plan) const {
  return choice_ == WeightChoice::kInt8 ? PackInt8(checkpoint, from, plan) : PackLinear(checkpoint, from, plan);
}

void CpuWeights::Bind(const std::byte* base) {
  const auto floats = [&](size_t offset) { return reinterpret_cast<const float*>(base + offset); };
  const auto matrix = [&](const PackedMatrix& m) {
    return MatmulWeights{m.format, m.out, m.in, base + m.weight, m.has_scales() ? floats(m.scales) : nullptr,
                         m.has_bias ? floats(m.bias) : nullptr};
  };
  const auto mlp = [&](const MlpOffsets& m) { return CpuMlp{matrix(m.gate), matrix(m.up), matrix(m.down)}; };
  const auto attention = [&](const AttentionOffsets& o) {
    CpuAttention a{floats(o.input_norm), floats(o.q_a_norm), floats(o.kv_a_norm), floats(o.post_norm),
                   matrix(o.q_a),        matrix(o.q_b),      matrix(o.kv_a),      matrix(o.o),
                   {},                   {},                 {}};
    for (const PackedMatrix& key : o.key) a.key.push_back(matrix(key));
    for (const PackedMatrix& value : o.value) a.value.push_back(matrix(value));
    for (const PackedMatrix& expand : o.expand) a.expand.push_back(matrix(expand));
    return a;
  };
  embedding_.rows = base + embedding_offset_;
  norm_ = floats(norm_offset_);
  head_ = matrix(head_offset_);
  if (has_draft_) {
    draft_.embedding.rows = base + draft_offsets_.embedding;
    draft_.embedding_norm = floats(draft_offsets_.embedding_norm);
    draft_.hidden_norm = floats(draft_offsets_.hidden_norm);
    draft_.norm = floats(draft_offsets_.norm);
    draft_.join = matrix(draft_offsets_.join);
  }
  for (const LayerOffsets& from : offsets_) {
    CpuLayer& layer = layers_.emplace_back();
    const bool draft = has_draft_ && &from == &offsets_.back();
    for (int half = 0; half < (draft ? 1 : 2); ++half) {
      layer.attention[half] = attention(from.attention[half]);
      layer.mlp[half] = mlp(from.mlp[half]);
    }
    if (draft) continue;
    layer.router = matrix(from.router);
    layer.correction_bias = floats(from.correction_bias);
    for (const MlpOffsets& expert : from.experts) layer.experts.push_back(mlp(expert));
  }
}

}  // namespace margay
