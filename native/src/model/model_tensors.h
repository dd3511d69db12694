// The tensors of a model, found by their published names and checked against the shapes that config.json implies
// (spec, section 5).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "weights/checkpoint.h"

namespace margay {

struct LinearTensors {
  const Tensor* weight = nullptr;  // [out, in]
  const Tensor* scales = nullptr;  // of an fp8 weight: [ceil(out / 128), ceil(in / 128)]
  const Tensor* bias = nullptr;    // [out], where the config says so
  int out = 0;
  int in = 0;
};

struct AttentionTensors {
  const Tensor* input_norm = nullptr;
  LinearTensors q_a;
  const Tensor* q_a_norm = nullptr;
  LinearTensors q_b;
  LinearTensors kv_a;
  const Tensor* kv_a_norm = nullptr;
  LinearTensors kv_b;
  LinearTensors o;
  const Tensor* post_norm = nullptr;
};

struct MlpTensors {
  LinearTensors gate;
  LinearTensors up;
  LinearTensors down;
};

struct LayerTensors {
  AttentionTensors attention[2];
  MlpTensors mlp[2];
  LinearTensors router;
  const Tensor* correction_bias = nullptr;
  std::vector<MlpTensors> experts;
};

// The layer that drafts (spec, section 7): dense, with the target's head.
struct DraftTensors {
  const Tensor* embedding = nullptr;  // the target's, where it has none of its own
  const Tensor* embedding_norm = nullptr;
  const Tensor* hidden_norm = nullptr;
  LinearTensors join;  // [hidden, 2 * hidden]: the embedding's half first
  AttentionTensors attention;
  MlpTensors mlp;
  const Tensor* norm = nullptr;
};

struct ModelTensors {
  const Tensor* embedding = nullptr;
  std::vector<LayerTensors> layers;
  const Tensor* norm = nullptr;
  LinearTensors head;
  std::optional<DraftTensors> draft;  // the first layer of model.mtp, unless it is an ScMoE one
  std::vector<std::string> warnings;
};

// model.mtp.* may be absent as a whole; where present it is checked, its embedding may be the target's. Tensors that
// belong to nothing are a warning.
Result<ModelTensors> FindModelTensors(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace margay
