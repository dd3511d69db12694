#include "frame/synthetic.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "frame/json_line.h"
#include "frame/memory.h"

namespace margay::bench {
namespace {

constexpr float kFp8Deviation = 64;  // of the codes: the scale brings values back to size

[[noreturn]] void Die(const char* what) {
  std::perror(what);
  std::exit(1);
}

enum class Kind { kWeight, kScale, kNorm, kZero };

struct Planned {
  std::string name;
  std::vector<int> sides;
  Kind kind;
  DType dtype;
  size_t offset = 0;

  size_t Count() const {
    size_t count = 1;
    for (const int side : sides) count *= static_cast<size_t>(side);
    return count;
  }
  size_t Bytes() const { return Count() * (dtype == DType::kF32 ? 4 : dtype == DType::kBf16 ? 2 : 1); }
  // Sums of as many terms as a row has stay near 1.
  float Deviation() const { return 1 / std::sqrt(static_cast<float>(sides.back())); }
};

class Layout {
 public:
  Layout(const ModelShape& shape, DType weights) : s_(shape), weights_(weights) {
    Add("model.embed_tokens.weight", {s_.vocabulary, s_.hidden}, Kind::kWeight, DType::kBf16);
    for (int layer = 0; layer < s_.layers; ++layer) Layer("model.layers." + std::to_string(layer) + ".");
    Norm("model.norm.weight", s_.hidden);
    Add("lm_head.weight", {s_.vocabulary, s_.hidden}, Kind::kWeight, DType::kBf16);
  }

  std::vector<Planned> tensors;
  size_t bytes = 0;

  std::string Header() const {
    std::string json(1, '{');
    for (const Planned& t : tensors) {
      std::string sides(1, '[');
      for (const int side : t.sides) sides.append(sides.size() > 1 ? "," : "").append(std::to_string(side));
      const char* dtype = t.dtype == DType::kF32 ? "F32" : t.dtype == DType::kBf16 ? "BF16" : "F8_E4M3";
      json.append(json.size() > 1 ? "," : "").append(JsonLine::Quote(t.name)).append(":{\"dtype\":\"").append(dtype);
      json.append("\",\"shape\":").append(sides).append("],\"data_offsets\":[").append(std::to_string(t.offset));
      json.append(",").append(std::to_string(t.offset + t.Bytes())).append("]}");
    }
    json.append("}");
    json.append((8 - json.size() % 8) % 8, ' ');
    return json;
  }

 private:
  void Add(const std::string& name, std::vector<int> sides, Kind kind, DType dtype) {
    tensors.push_back({name, std::move(sides), kind, dtype, bytes});
    bytes += (tensors.back().Bytes() + 63) / 64 * 64;
  }
  void Norm(const std::string& name, int width) { Add(name, {width}, Kind::kNorm, DType::kBf16); }
  void Linear(const std::string& stem, int out, int in) {
    Add(stem + ".weight", {out, in}, Kind::kWeight, weights_);
    if (weights_ != DType::kFp8) return;
    Add(stem + ".weight_scale_inv", {(out + kFp8Block - 1) / kFp8Block, (in + kFp8Block - 1) / kFp8Block}, Kind::kScale, DType::kF32);
  }
  void Mlp(const std::string& stem, int width) {
    Linear(stem + "gate_proj", width, s_.hidden);
    Linear(stem + "up_proj", width, s_.hidden);
    Linear(stem + "down_proj", s_.hidden, width);
  }
  void Layer(const std::string& stem) {
    for (const char* half : {"0", "1"}) {
      const std::string self = stem + "self_attn." + half + ".";
      Norm(stem + "input_layernorm." + half + ".weight", s_.hidden);
      Norm(stem + "post_attention_layernorm." + half + ".weight", s_.hidden);
      Linear(self + "q_a_proj", s_.q_lora, s_.hidden);
      Norm(self + "q_a_layernorm.weight", s_.q_lora);
      Linear(self + "q_b_proj", s_.heads * (s_.nope + s_.rope), s_.q_lora);
      Linear(self + "kv_a_proj_with_mqa", s_.kv_lora + s_.rope, s_.hidden);
      Norm(self + "kv_a_layernorm.weight", s_.kv_lora);
      Linear(self + "kv_b_proj", s_.heads * (s_.nope + s_.v_head), s_.kv_lora);
      Linear(self + "o_proj", s_.hidden, s_.heads * s_.v_head);
      Mlp(stem + "mlps." + half + ".", s_.ffn);
    }
    const int slots = s_.experts + s_.zero_experts;
    Add(stem + "mlp.router.classifier.weight", {slots, s_.hidden}, Kind::kWeight, DType::kF32);
    Add(stem + "mlp.router.e_score_correction_bias", {slots}, Kind::kZero, DType::kF32);
    for (int e = 0; e < s_.experts; ++e) Mlp(stem + "mlp.experts." + std::to_string(e) + ".", s_.expert_ffn);
  }

  const ModelShape& s_;
  const DType weights_;
};

void Fill(const Planned& t, std::byte* out, uint64_t seed, ThreadPool* pool) {
  if (t.kind == Kind::kZero) return;
  if (t.kind == Kind::kNorm) {
    for (size_t i = 0; i < t.Count(); ++i) reinterpret_cast<uint16_t*>(out)[i] = 0x3f80;  // 1
  } else if (t.kind == Kind::kScale) {
    const float in = static_cast<float>(t.sides.back()) * kFp8Block;
    for (size_t i = 0; i < t.Count(); ++i) reinterpret_cast<float*>(out)[i] = 1 / (kFp8Deviation * std::sqrt(in));
  } else if (t.dtype == DType::kF32) {
    FillNormal({reinterpret_cast<float*>(out), t.Count()}, t.Deviation(), seed);
  } else if (t.dtype == DType::kBf16) {
    FillNormalBf16({reinterpret_cast<uint16_t*>(out), t.Count()}, t.Deviation(), seed, pool);
  } else {
    FillNormalFp8({reinterpret_cast<uint8_t*>(out), t.Count()}, kFp8Deviation, seed, pool);
  }
}

std::string Config(const ModelShape& s, DType weights) {
  JsonLine config("synthetic");
  config.Text("model_type", "longcat_flash").Number("vocab_size", s.vocabulary).Number("hidden_size", s.hidden);
  config.Number("num_layers", s.layers).Number("num_attention_heads", s.heads).Number("q_lora_rank", s.q_lora);
  config.Number("kv_lora_rank", s.kv_lora).Number("qk_nope_head_dim", s.nope).Number("qk_rope_head_dim", s.rope);
  config.Number("v_head_dim", s.v_head).Number("ffn_hidden_size", s.ffn).Number("expert_ffn_hidden_size", s.expert_ffn);
  config.Number("n_routed_experts", s.experts).Number("zero_expert_num", s.zero_experts).Number("moe_topk", s.topk);
  config.Number("max_position_embeddings", s.context).Number("rms_norm_eps", 1e-5).Number("routed_scaling_factor", 1);
  if (weights == DType::kFp8) {
    config.Raw("quantization_config", R"({"quant_method":"fp8","fmt":"e4m3","weight_block_size":[128,128]})");
  }
  return config.Object();
}

}  // namespace

double ModelShape::AbsorbedParameters() const { return double(layers) * 2 * kv_lora * heads * (nope + v_head); }

double ModelShape::AttentionParameters() const {
  const double others = double(hidden) * q_lora + double(q_lora) * heads * (nope + rope) + double(hidden) * (kv_lora + rope) +
                        double(heads) * v_head * hidden;
  return layers * 2 * others + AbsorbedParameters();
}

double ModelShape::DenseParameters() const { return double(layers) * hidden * (6.0 * ffn + experts + zero_experts); }
double ModelShape::RouterParameters() const { return double(layers) * hidden * (experts + zero_experts); }
double ModelShape::ExpertParameters() const { return 3.0 * hidden * expert_ffn; }
double ModelShape::HeadParameters() const { return double(vocabulary) * hidden; }

double StepBytes(const ModelShape& s, double weight_bytes, double experts, double context_rows) {
  const double matrices = s.AttentionParameters() - s.AbsorbedParameters() + s.DenseParameters() - s.RouterParameters() +
                          s.layers * experts * s.ExpertParameters();
  const double context = context_rows * s.layers * 2 * (s.kv_lora + s.rope) * 2;
  return matrices * weight_bytes + (s.AbsorbedParameters() + s.HeadParameters()) * 2 + s.RouterParameters() * 4 + context;
}

ModelShape LayerSlice() { return {.name = "layer slice"}; }

ModelShape SmallDeep() {
  return {.name = "28 narrow layers", .layers = 28, .hidden = 256, .heads = 4, .q_lora = 64, .kv_lora = 64, .nope = 32, .rope = 16,
          .v_head = 32, .ffn = 512, .expert_ffn = 128, .experts = 16, .zero_experts = 8, .topk = 4, .vocabulary = 4096};
}

SyntheticCheckpoint::SyntheticCheckpoint(const ModelShape& shape, DType weights, ThreadPool* pool) {
  const Layout layout(shape, weights);
  const std::string header = layout.Header();
  const size_t data = 8 + header.size();
  const size_t bytes = data + layout.bytes;
  memory_ = memfd_create("margay-bench", MFD_CLOEXEC);
  if (memory_ < 0 || ftruncate(memory_, static_cast<off_t>(bytes)) != 0) Die("no memory for a checkpoint");
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory_, 0);
  if (mapped == MAP_FAILED) Die("no memory for a checkpoint");
  auto* file = static_cast<std::byte*>(mapped);
  const uint64_t header_bytes = header.size();
  std::memcpy(file, &header_bytes, 8);
  std::memcpy(file + 8, header.data(), header.size());
  uint64_t seed = 1;
  for (const Planned& tensor : layout.tensors) Fill(tensor, file + data + tensor.offset, ++seed, pool);
  munmap(mapped, bytes);

  char name[] = "/tmp/margay-bench-XXXXXX";
  if (mkdtemp(name) == nullptr) Die("no folder for a checkpoint");
  folder_ = name;
  const std::string target = "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(memory_);
  if (symlink(target.c_str(), (folder_ + "/model.safetensors").c_str()) != 0) Die("no folder for a checkpoint");
  const Status written = WriteTextAtomically(folder_ + "/config.json", Config(shape, weights));
  if (!written.ok()) Die(written.message().c_str());
}

SyntheticCheckpoint::~SyntheticCheckpoint() {
  unlink((folder_ + "/model.safetensors").c_str());
  unlink((folder_ + "/config.json").c_str());
  rmdir(folder_.c_str());
  close(memory_);
}

}  // namespace margay::bench
