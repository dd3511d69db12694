// config.json of a LongCat-Flash checkpoint, checked: every value within limits, everything unsupported refused by name.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace margay {

struct RopeConfig {
  double theta = 1e7;
  bool yarn = false;
  double factor = 1;
  double original_positions = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 0;
  double attention_factor = 0;  // 0: from mscale and mscale_all_dim
  bool truncate = true;         // whole dimensions as borders of the ramp
};

struct ModelConfig {
  int vocab_size = 0;
  int hidden = 0;
  int layers = 0;  // logical: two attentions each
  int heads = 0;
  int q_lora = 0;
  int kv_lora = 0;
  int nope = 0;
  int rope = 0;
  int v_head = 0;
  int ffn = 0;
  int expert_ffn = 0;
  int experts = 0;       // real ones: ids [0, experts)
  int zero_experts = 0;  // identity: ids [experts, experts + zero_experts)
  int topk = 0;
  int context_length = 0;
  int mtp_layers = 0;
  float routed_scale = 1;
  float rms_eps = 1e-5F;
  bool scale_q_lora = true;
  bool scale_kv_lora = true;
  bool attention_bias = false;
  bool router_bias = false;
  bool tied_head = false;
  bool mtp_is_scmoe = false;
  RopeConfig rope_config;
  std::vector<int32_t> eos_tokens;

  int qk_head() const { return nope + rope; }
  int kv_row() const { return kv_lora + rope; }
  int slots() const { return experts + zero_experts; }
  int attentions() const { return 2 * layers; }
  float q_scale() const;   // of the whole query (spec 3.2)
  float kv_scale() const;  // of the normalised latent
  // inv_freq of the rotary pairs, factor of cos and sin, factor of the scores (spec 3.3, 9.1).
  std::vector<float> InverseFrequencies() const;
  float RopeAmplitude() const;
  float SoftmaxScale() const;
};

// generation_config: its text, or empty. Errors are kCheckpoint and name the key.
Result<ModelConfig> ParseModelConfig(std::string_view config, std::string_view generation_config);

}  // namespace margay
