#include "model/cpu/cpu_weights.h"

#include <numbers>

namespace margay {

void CpuWeights::Plan(const Checkpoint& checkpoint, const ModelTensors& tensors, PackPlan* plan) {
  const auto linear = [&](const LinearTensors& from) { return PackLinear(checkpoint, from, plan); };
  const auto vector = [&](const Tensor* from, float factor = 1) { return PackVector(checkpoint, *from, factor, plan); };
  const auto mlp = [&](const MlpTensors& from) { return MlpOffsets{linear(from.gate), linear(from.up), linear(from.down)}; };
  const float query_factor = c_.q_scale() * c_.SoftmaxScale() * std::numbers::log2e_v<float>;
  embedding_is_f32_ = tensors.embedding->dtype == DType::kF32;
  embedding_offset_ = PackTable(checkpoint, *tensors.embedding, plan);
  norm_offset_ = vector(tensors.norm);
  head_offset_ = linear(tensors.head);
  for (const LayerTensors& from : tensors.layers) {
    LayerOffsets& layer = offsets_.emplace_back();
    for (int half = 0; half < 2; ++half) {
      const AttentionTensors& t = from.attention[half];
      AttentionOffsets& a = layer.attention[half];
      a.input_norm = vector(t.input_norm);
      a.q_a_norm = vector(t.q_a_norm, query_factor);
      a.kv_a_norm = vector(t.kv_a_norm, c_.kv_scale());
      a.post_norm = vector(t.post_norm);
      a.q_a = linear(t.q_a);
      a.q_b = linear(t.q_b);
      a.kv_a = linear(t.kv_a);
      a.o = linear(t.o);
      for (int head = 0; head < c_.heads; ++head) {
        const int first = head * (c_.nope + c_.v_head);
        a.key.push_back(PackRows(checkpoint, t.kv_b, first, c_.nope, true, plan));
        a.value.push_back(PackRows(checkpoint, t.kv_b, first + c_.nope, c_.v_head, false, plan));
      }
      layer.mlp[half] = mlp(from.mlp[half]);
    }
    layer.router = linear(from.router);
    layer.correction_bias = vector(from.correction_bias);
    for (const MlpTensors& expert : from.experts) layer.experts.push_back(mlp(expert));
  }
}

void CpuWeights::Bind(const std::byte* base) {
  const auto floats = [&](size_t offset) { return reinterpret_cast<const float*>(base + offset); };
  const auto matrix = [&](const PackedMatrix& m) {
    return MatmulWeights{m.format, m.out, m.in, base + m.weight, m.format == WeightFormat::kFp8 ? floats(m.scales) : nullptr,
                         m.has_bias ? floats(m.bias) : nullptr};
  };
  const auto mlp = [&](const MlpOffsets& m) { return CpuMlp{matrix(m.gate), matrix(m.up), matrix(m.down)}; };
  embedding_ = base + embedding_offset_;
  norm_ = floats(norm_offset_);
  head_ = matrix(head_offset_);
  for (const LayerOffsets& from : offsets_) {
    CpuLayer& layer = layers_.emplace_back();
    for (int half = 0; half < 2; ++half) {
      const AttentionOffsets& o = from.attention[half];
      layer.attention[half] = {floats(o.input_norm), floats(o.q_a_norm), floats(o.kv_a_norm), floats(o.post_norm),
                               matrix(o.q_a),        matrix(o.q_b),      matrix(o.kv_a),      matrix(o.o),
                               {},                   {}};
      for (const PackedMatrix& key : o.key) layer.attention[half].key.push_back(matrix(key));
      for (const PackedMatrix& value : o.value) layer.attention[half].value.push_back(matrix(value));
      layer.mlp[half] = mlp(from.mlp[half]);
    }
    layer.router = matrix(from.router);
    layer.correction_bias = floats(from.correction_bias);
    for (const MlpOffsets& expert : from.experts) layer.experts.push_back(mlp(expert));
  }
}

}  // namespace margay
