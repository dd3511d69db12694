#include "model/model_config.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <numbers>

#include "core/json.h"

namespace margay {
namespace {

// Reads values of one object; the first failure is kept.
class Reader {
 public:
  Reader(const Json& object, Status* status) : object_(object), status_(status) {}

  // The member under the first of `names` that is there and not null.
  const Json* Member(std::initializer_list<const char*> names) const {
    for (const char* name : names) {
      const Json* found = object_.Find(name);
      if (found != nullptr && !found->is(Json::Kind::kNull)) return found;
    }
    return nullptr;
  }

  void Fail(const std::string& sentence) const {
    if (status_->ok()) *status_ = Status(Code::kCheckpoint, "config.json: " + sentence);
  }

  int Int(std::initializer_list<const char*> names, int64_t low, int64_t high, int64_t fallback) const {
    const Json* member = Member(names);
    const std::string name = *names.begin();
    if (member == nullptr) {
      if (fallback < 0) Fail(name + " is missing");
      return static_cast<int>(fallback);
    }
    if (!member->is(Json::Kind::kNumber) || !member->integral || member->integer < low || member->integer > high) {
      Fail(name + " must be a whole number from " + std::to_string(low) + " to " + std::to_string(high));
      return static_cast<int>(low);
    }
    return static_cast<int>(member->integer);
  }
  int Required(std::initializer_list<const char*> names, int64_t low, int64_t high) const {
    return Int(names, low, high, -1);
  }

  double Number(std::initializer_list<const char*> names, double low, double high, double fallback) const {
    const Json* member = Member(names);
    if (member == nullptr) return fallback;
    if (!member->is(Json::Kind::kNumber) || !(member->number >= low && member->number <= high)) {
      Fail(std::string(*names.begin()) + " must be a number from " + std::to_string(low) + " to " + std::to_string(high));
      return fallback;
    }
    return member->number;
  }

  bool Bool(const char* name, bool fallback) const {
    const Json* member = Member({name});
    if (member == nullptr) return fallback;
    if (!member->is(Json::Kind::kBool)) Fail(std::string(name) + " must be true or false");
    return member->boolean;
  }

  std::string Text(std::initializer_list<const char*> names, const char* fallback) const {
    const Json* member = Member(names);
    if (member == nullptr) return fallback;
    if (!member->is(Json::Kind::kString)) Fail(std::string(*names.begin()) + " must be a string");
    return member->text;
  }

 private:
  const Json& object_;
  Status* status_;
};

void RefuseUnsupported(const Json& object, const Reader& config) {
  static constexpr const char* kLater[] = {"streaming_sparse_attention", "dual_chunk_attention_config", "emb_neighbor_num",
                                           "emb_split_num",              "ngram_vocab_size_ratio",      "indexer_config",
                                           "cli_factor",                 "head_score"};
  for (const auto& [key, value] : object.members) {
    const bool later = std::find(std::begin(kLater), std::end(kLater), key) != std::end(kLater) ||
                       key.starts_with("oe_") || key.starts_with("index_");
    if (later && !value.is(Json::Kind::kNull)) config.Fail(key + " is not supported by this version");
  }
  const auto only = [&](const char* key, const char* fallback, std::initializer_list<const char*> allowed) {
    const std::string value = config.Text({key}, fallback);
    if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
      config.Fail(std::string(key) + " \"" + value + "\" is not supported; this version knows \"" + *allowed.begin() + "\"");
    }
  };
  only("model_type", "longcat_flash", {"longcat_flash"});
  only("attention_method", "MLA", {"MLA"});
  only("zero_expert_type", "identity", {"identity"});
  only("hidden_act", "silu", {"silu"});
  if (config.Bool("norm_topk_prob", false)) config.Fail("norm_topk_prob true is not supported");
}

void RefuseOtherQuantisation(const Json* quantisation, Status* status) {
  if (quantisation == nullptr) return;
  const Reader config(*quantisation, status);
  const std::string method = config.Text({"quant_method"}, "");
  if (method != "fp8") config.Fail("quantization_config.quant_method \"" + method + "\" is not supported, only \"fp8\" is");
  if (config.Text({"fmt"}, "e4m3") != "e4m3") config.Fail("quantization_config.fmt other than \"e4m3\" is not supported");
  const Json* block = config.Member({"weight_block_size"});
  if (block == nullptr) return;
  const bool fits = block->items.size() == 2 && block->items[0].integer == 128 && block->items[1].integer == 128;
  if (!fits) config.Fail("quantization_config.weight_block_size other than [128, 128] is not supported");
}

RopeConfig ReadRope(const Json& object, const Reader& config, int context_length, Status* status) {
  RopeConfig rope;
  rope.theta = config.Number({"rope_theta"}, 1, 1e12, 1e7);
  const Json* found = object.Find("rope_parameters");
  if (found == nullptr || found->is(Json::Kind::kNull)) found = object.Find("rope_scaling");
  if (found == nullptr || found->is(Json::Kind::kNull)) return rope;
  if (!found->is(Json::Kind::kObject)) config.Fail("rope_parameters or rope_scaling must be an object");
  const Reader part(*found, status);
  rope.theta = part.Number({"rope_theta"}, 1, 1e12, rope.theta);
  const std::string type = part.Text({"rope_type", "type"}, "default");
  if (type == "default") return rope;
  if (type != "yarn" && type != "deepseek_yarn") {
    config.Fail("rope type \"" + type + "\" is not supported; this version knows default, yarn and deepseek_yarn");
    return rope;
  }
  rope.yarn = true;
  rope.original_positions = part.Number({"original_max_position_embeddings"}, 1, 1e9, context_length);
  rope.factor = part.Number({"factor"}, 1, 1e6, 0);
  if (rope.factor == 0) config.Fail("factor of the yarn rope is missing");
  rope.beta_fast = part.Number({"beta_fast"}, 1e-3, 1e6, 32);
  rope.beta_slow = part.Number({"beta_slow"}, 1e-3, 1e6, 1);
  rope.mscale = part.Number({"mscale"}, 0, 100, 1);
  rope.mscale_all_dim = part.Number({"mscale_all_dim"}, 0, 100, 0);
  rope.attention_factor = part.Number({"attention_factor"}, 0, 100, 0);
  rope.truncate = part.Bool("truncate", true);
  return rope;
}

void AddEos(const Json& object, const char* file, int vocab_size, std::vector<int32_t>* eos, Status* status) {
  const Json* value = object.Find("eos_token_id");
  if (value == nullptr || value->is(Json::Kind::kNull)) return;
  const auto add = [&](const Json& token) {
    if (!token.integral || token.integer < 0 || token.integer >= vocab_size) {
      if (status->ok()) *status = Status(Code::kCheckpoint, std::string(file) + ": eos_token_id is not a token of the vocabulary");
      return;
    }
    const auto id = static_cast<int32_t>(token.integer);
    if (std::find(eos->begin(), eos->end(), id) == eos->end()) eos->push_back(id);
  };
  if (!value->is(Json::Kind::kArray)) return add(*value);
  for (const Json& token : value->items) add(token);
}

double MScale(double factor, double m) { return factor > 1 ? 0.1 * m * std::log(factor) + 1 : 1; }

Result<Json> ParseObject(std::string_view text, const char* file) {
  Result<Json> parsed = ParseJson(text);
  if (!parsed.ok()) return Status(Code::kCheckpoint, std::string(file) + ": " + parsed.status().message());
  if (!parsed->is(Json::Kind::kObject)) return Status(Code::kCheckpoint, std::string(file) + ": no JSON object");
  return parsed;
}

}  // namespace

float ModelConfig::q_scale() const { return scale_q_lora ? static_cast<float>(std::sqrt(double(hidden) / q_lora)) : 1; }

float ModelConfig::kv_scale() const {
  return scale_kv_lora ? static_cast<float>(std::sqrt(double(hidden) / kv_lora)) : 1;
}

std::vector<float> ModelConfig::InverseFrequencies() const {
  const RopeConfig& r = rope_config;
  const double dims = rope;
  const auto border = [&](double beta) {
    return dims * std::log(r.original_positions / (2 * std::numbers::pi * beta)) / (2 * std::log(r.theta));
  };
  double low = 0;
  double high = 0;
  if (r.yarn) {
    low = std::max(r.truncate ? std::floor(border(r.beta_fast)) : border(r.beta_fast), 0.0);
    high = std::min(r.truncate ? std::ceil(border(r.beta_slow)) : border(r.beta_slow), dims - 1);
    if (low == high) high += 0.001;
  }
  std::vector<float> frequencies(static_cast<size_t>(rope) / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double plain = std::pow(r.theta, -2.0 * static_cast<double>(i) / dims);
    const double ramp = r.yarn ? std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0) : 0;
    frequencies[i] = static_cast<float>(plain / r.factor * ramp + plain * (1 - ramp));
  }
  return frequencies;
}

float ModelConfig::RopeAmplitude() const {
  const RopeConfig& r = rope_config;
  if (!r.yarn) return 1;
  if (r.attention_factor > 0) return static_cast<float>(r.attention_factor);
  return static_cast<float>(MScale(r.factor, r.mscale) / MScale(r.factor, r.mscale_all_dim));
}

float ModelConfig::SoftmaxScale() const {
  const RopeConfig& r = rope_config;
  const double m = r.yarn && r.mscale_all_dim != 0 ? MScale(r.factor, r.mscale_all_dim) : 1;
  return static_cast<float>(m * m / std::sqrt(double(qk_head())));
}

Result<ModelConfig> ParseModelConfig(std::string_view config, std::string_view generation_config) {
  Result<Json> parsed = ParseObject(config, "config.json");
  if (!parsed.ok()) return parsed.status();
  Status status;
  const Reader reader(*parsed, &status);
  RefuseUnsupported(*parsed, reader);
  const Json* quantisation = reader.Member({"quantization_config"});
  RefuseOtherQuantisation(quantisation, &status);

  constexpr int kWidth = 1 << 20;
  ModelConfig c;
  c.vocab_size = reader.Required({"vocab_size"}, 2, 1 << 24);
  c.hidden = reader.Required({"hidden_size"}, 2, kWidth);
  if (reader.Member({"num_layers"}) != nullptr) {
    c.layers = reader.Required({"num_layers"}, 1, 1024);
  } else {
    const int attentions = reader.Required({"num_hidden_layers"}, 2, 2048);
    if (attentions % 2 != 0) reader.Fail("num_hidden_layers must be even when num_layers is missing");
    c.layers = attentions / 2;
  }
  c.heads = reader.Required({"num_attention_heads"}, 1, 4096);
  c.q_lora = reader.Required({"q_lora_rank"}, 1, kWidth);
  c.kv_lora = reader.Required({"kv_lora_rank"}, 1, kWidth);
  c.nope = reader.Required({"qk_nope_head_dim"}, 1, 65536);
  c.rope = reader.Required({"qk_rope_head_dim"}, 2, 65536);
  if (c.rope % 2 != 0) reader.Fail("qk_rope_head_dim must be even");
  c.v_head = reader.Required({"v_head_dim"}, 1, 65536);
  c.ffn = reader.Required({"ffn_hidden_size", "intermediate_size"}, 1, kWidth);
  c.expert_ffn = reader.Required({"expert_ffn_hidden_size", "moe_intermediate_size"}, 1, kWidth);
  c.experts = reader.Required({"n_routed_experts", "num_local_experts"}, 1, 65536);
  c.zero_experts = reader.Int({"zero_expert_num"}, 0, 65536, 0);
  c.topk = reader.Required({"moe_topk", "num_experts_per_tok"}, 1, std::min(c.slots(), 1024));
  c.context_length = reader.Required({"max_position_embeddings"}, 1, 1 << 27);
  c.mtp_layers = reader.Int({"num_nextn_predict_layers", "num_nextn_layers"}, 0, 64, 0);
  c.mtp_is_scmoe = reader.Bool("nextn_use_scmoe", false);
  c.routed_scale = static_cast<float>(reader.Number({"routed_scaling_factor"}, 0, 1e6, 1));
  c.rms_eps = static_cast<float>(reader.Number({"rms_norm_eps"}, 0, 1, 1e-5));
  c.scale_q_lora = reader.Bool("mla_scale_q_lora", true);
  c.scale_kv_lora = reader.Bool("mla_scale_kv_lora", true);
  c.attention_bias = reader.Bool("attention_bias", false);
  c.router_bias = reader.Bool("router_bias", false);
  c.tied_head = reader.Bool("tie_word_embeddings", false);
  c.rope_config = ReadRope(*parsed, reader, c.context_length, &status);
  AddEos(*parsed, "config.json", c.vocab_size, &c.eos_tokens, &status);
  if (!generation_config.empty()) {
    Result<Json> generation = ParseObject(generation_config, "generation_config.json");
    if (!generation.ok()) return generation.status();
    AddEos(*generation, "generation_config.json", c.vocab_size, &c.eos_tokens, &status);
  }
  if (!status.ok()) return status;
  const std::vector<float> frequencies = c.InverseFrequencies();
  const bool finite = std::all_of(frequencies.begin(), frequencies.end(), [](float f) { return std::isfinite(f); });
  if (!finite) return Status(Code::kCheckpoint, "config.json: rope_theta and the yarn values give no finite frequencies");
  return c;
}

}  // namespace margay
