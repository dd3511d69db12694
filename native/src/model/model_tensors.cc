#include "model/model_tensors.h"

#include <algorithm>
#include <set>

namespace margay {
namespace {

std::string Spell(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text.append(i == 0 ? "" : ", ").append(std::to_string(shape[i]));
  return text + "]";
}

class Finder {
 public:
  Finder(const Checkpoint& checkpoint, const ModelConfig& config) : checkpoint_(checkpoint), c_(config) {}

  Result<ModelTensors> Find() {
    ModelTensors model;
    model.embedding = Dense("model.embed_tokens.weight", {c_.vocab_size, c_.hidden});
    for (int layer = 0; layer < c_.layers && status_.ok(); ++layer) {
      model.layers.push_back(Layer("model.layers." + std::to_string(layer) + "."));
    }
    model.norm = Dense("model.norm.weight", {c_.hidden});
    if (c_.tied_head && checkpoint_.Find("lm_head.weight") == nullptr) {
      model.head = {model.embedding, nullptr, nullptr, c_.vocab_size, c_.hidden};
    } else {
      model.head = {Dense("lm_head.weight", {c_.vocab_size, c_.hidden}), nullptr, nullptr, c_.vocab_size, c_.hidden};
    }
    model.draft = Draft(model.embedding);
    if (!status_.ok()) return status_;
    WarnOfUnknown(&model.warnings);
    return model;
  }

 private:
  void Fail(const std::string& sentence) {
    if (status_.ok()) status_ = Status(Code::kCheckpoint, sentence + " in " + checkpoint_.folder());
  }

  const Tensor* Take(const std::string& name, const std::vector<int64_t>& shape) {
    const Tensor* tensor = checkpoint_.Find(name);
    if (tensor == nullptr) {
      Fail("tensor " + name + " is missing");
      return nullptr;
    }
    known_.insert(name);
    if (tensor->shape != shape) {
      Fail("tensor " + name + " has the shape " + Spell(tensor->shape) + ", " + Spell(shape) + " is expected");
    }
    if (tensor->dtype == DType::kOther) {
      Fail("tensor " + name + " is stored as " + tensor->dtype_name + "; F32, BF16 and F8_E4M3 are supported");
    }
    return tensor;
  }

  // One that is never quantised: norms, embeddings, router.
  const Tensor* Dense(const std::string& name, const std::vector<int64_t>& shape) {
    const Tensor* tensor = Take(name, shape);
    if (tensor != nullptr && tensor->dtype == DType::kFp8) Fail("tensor " + name + " is F8_E4M3 but cannot have block scales");
    return tensor;
  }

  LinearTensors Linear(const std::string& stem, int out, int in, bool bias = false) {
    LinearTensors linear{Take(stem + ".weight", {out, in}), nullptr, nullptr, out, in};
    if (bias) linear.bias = Dense(stem + ".bias", {out});
    if (linear.weight == nullptr || linear.weight->dtype != DType::kFp8) return linear;
    const auto blocks = [](int side) { return int64_t{side + kFp8Block - 1} / kFp8Block; };
    linear.scales = Take(stem + ".weight_scale_inv", {blocks(out), blocks(in)});
    if (linear.scales != nullptr && linear.scales->dtype != DType::kF32) {
      Fail("tensor " + linear.scales->name + " is stored as " + linear.scales->dtype_name + ", F32 is expected");
    }
    return linear;
  }

  MlpTensors Mlp(const std::string& stem, int width) {
    return {Linear(stem + "gate_proj", width, c_.hidden), Linear(stem + "up_proj", width, c_.hidden),
            Linear(stem + "down_proj", c_.hidden, width)};
  }

  AttentionTensors Attention(const std::string& self, const std::string& input_norm, const std::string& post_norm) {
    const bool bias = c_.attention_bias;
    AttentionTensors a;
    a.input_norm = Dense(input_norm + ".weight", {c_.hidden});
    a.q_a = Linear(self + "q_a_proj", c_.q_lora, c_.hidden, bias);
    a.q_a_norm = Dense(self + "q_a_layernorm.weight", {c_.q_lora});
    a.q_b = Linear(self + "q_b_proj", c_.heads * c_.qk_head(), c_.q_lora);
    a.kv_a = Linear(self + "kv_a_proj_with_mqa", c_.kv_row(), c_.hidden, bias);
    a.kv_a_norm = Dense(self + "kv_a_layernorm.weight", {c_.kv_lora});
    a.kv_b = Linear(self + "kv_b_proj", c_.heads * (c_.nope + c_.v_head), c_.kv_lora);
    a.o = Linear(self + "o_proj", c_.hidden, c_.heads * c_.v_head, bias);
    a.post_norm = Dense(post_norm + ".weight", {c_.hidden});
    return a;
  }

  LayerTensors Layer(const std::string& stem) {
    LayerTensors layer;
    for (int half = 0; half < 2; ++half) {
      const std::string i = std::to_string(half);
      layer.attention[half] =
          Attention(stem + "self_attn." + i + ".", stem + "input_layernorm." + i, stem + "post_attention_layernorm." + i);
      layer.mlp[half] = Mlp(stem + "mlps." + i + ".", c_.ffn);
    }
    layer.router = {Dense(stem + "mlp.router.classifier.weight", {c_.slots(), c_.hidden}), nullptr, nullptr, c_.slots(), c_.hidden};
    if (c_.router_bias) layer.router.bias = Dense(stem + "mlp.router.classifier.bias", {c_.slots()});
    layer.correction_bias = Dense(stem + "mlp.router.e_score_correction_bias", {c_.slots()});
    for (int e = 0; e < c_.experts && status_.ok(); ++e) {
      layer.experts.push_back(Mlp(stem + "mlp.experts." + std::to_string(e) + ".", c_.expert_ffn));
    }
    return layer;
  }

  std::optional<DraftTensors> Draft(const Tensor* embedding) {
    const auto first = checkpoint_.tensors().lower_bound("model.mtp.");
    const bool present = first != checkpoint_.tensors().end() && first->first.starts_with("model.mtp.");
    if (!present || c_.mtp_is_scmoe) return std::nullopt;
    DraftTensors draft;
    draft.embedding = embedding;
    if (checkpoint_.Find("model.mtp.embed_tokens.weight") != nullptr) {
      draft.embedding = Dense("model.mtp.embed_tokens.weight", {c_.vocab_size, c_.hidden});
    }
    // Layers after the first are checked, and not used: longer drafts come from feeding the first one again.
    for (int layer = std::max(1, c_.mtp_layers) - 1; layer >= 0 && status_.ok(); --layer) {
      const std::string stem = "model.mtp.layers." + std::to_string(layer) + ".";
      draft.embedding_norm = Dense(stem + "enorm.m.weight", {c_.hidden});
      draft.hidden_norm = Dense(stem + "hnorm.m.weight", {c_.hidden});
      draft.join = Linear(stem + "eh_proj", c_.hidden, 2 * c_.hidden);
      draft.attention = Attention(stem + "self_attn.", stem + "input_layernorm", stem + "post_attention_layernorm");
      draft.mlp = Mlp(stem + "transformer_layer.mlp.", c_.ffn);
    }
    draft.norm = Dense("model.mtp.norm.weight", {c_.hidden});
    return draft;
  }

  void WarnOfUnknown(std::vector<std::string>* warnings) const {
    std::string names;
    int count = 0;
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (known_.contains(name) || (c_.mtp_is_scmoe && name.starts_with("model.mtp."))) continue;
      if (++count <= 4) names.append(count == 1 ? "" : ", ").append(name);
    }
    if (count == 0) return;
    if (count > 4) names.append(" and ").append(std::to_string(count - 4)).append(" more");
    warnings->push_back("tensors of the checkpoint that nothing uses: " + names);
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& c_;
  Status status_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace

Result<ModelTensors> FindModelTensors(const Checkpoint& checkpoint, const ModelConfig& config) {
  return Finder(checkpoint, config).Find();
}

}  // namespace margay
