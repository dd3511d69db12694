// The model on vector units: bf16 (or fp8, fp32) weights in panels, fp32 activations, bf16 KV, absorbed attention.
//
// Folded at load (spec 3.2): q_a_layernorm carries s_q, the softmax scale and log2(e); kv_a_layernorm carries s_kv.
#include <algorithm>
#include <cstring>
#include <numbers>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul_list.h"
#include "model/backend.h"
#include "model/packed_matrix.h"
#include "model/rotary.h"

namespace margay {
namespace {

// Work below which threads cost more than they bring: values of row-wise operations, products of attention.
constexpr int64_t kSerialValues = 16 << 10;
constexpr int64_t kSerialAttention = 192 << 10;

size_t Area(int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }
int RoundUp(int n, int to) { return (n + to - 1) / to * to; }

struct AttentionOffsets {
  size_t input_norm, q_a_norm, kv_a_norm, post_norm;
  PackedMatrix q_a, q_b, kv_a, o;
  std::vector<PackedMatrix> key;    // per head: query part [nope] -> latent
  std::vector<PackedMatrix> value;  // per head: latent -> [v_head]
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

struct BoundMlp {
  MatmulWeights gate, up, down;
};

struct BoundAttention {
  const float *input_norm, *q_a_norm, *kv_a_norm, *post_norm;
  MatmulWeights q_a, q_b, kv_a, o;
  std::vector<MatmulWeights> key, value;
};

struct BoundLayer {
  BoundAttention attention[2];
  BoundMlp mlp[2];
  MatmulWeights router;
  const float* correction_bias;
  std::vector<BoundMlp> experts;
};

// Queries of one sequence for one tile: `first` counts rows * heads over the whole step.
struct AttentionItem {
  int first;
  int count;
  const int32_t* block_table;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const ModelConfig& config, float latent_eps, int max_rows, const std::string& isa, const CpuKernels* kernels,
             ThreadPool* pool)
      : c_(config),
        latent_eps_(latent_eps),
        isa_(isa),
        k_(kernels),
        pool_(pool),
        rotary_(config),
        query_width_(RoundUp(config.kv_row(), kPanel)),
        matmul_(kernels, pool, std::max({2, config.heads, config.experts})) {
    const auto wide = [&](int width) { return std::vector<float>(Area(max_rows, width)); };
    x_ = wide(c_.hidden);
    n_ = wide(c_.hidden);
    m_ = wide(c_.hidden);
    y_ = wide(c_.hidden);
    q_a_ = wide(c_.q_lora);
    q_ = wide(c_.heads * c_.qk_head());
    kv_ = wide(c_.kv_row());
    queries_ = wide(c_.heads * query_width_);
    context_ = wide(c_.heads * c_.kv_lora);
    heads_out_ = wide(c_.heads * c_.v_head);
    wide_ = wide(std::max(c_.ffn, c_.topk * c_.expert_ffn));
    expert_out_ = wide(c_.topk * c_.hidden);
    probabilities_ = wide(c_.slots());
    cosine_ = wide(rotary_.pairs());
    sine_ = cosine_;
    visible_.resize(Area(max_rows, c_.heads));
    chosen_.resize(Area(max_rows, c_.topk));
    place_.resize(chosen_.size());
    assigned_.resize(chosen_.size());
    expert_first_.resize(static_cast<size_t>(c_.experts) + 1);
    scratch_.resize(Area(pool->threads(), kAttentionScratch));
    items_.reserve(Area(max_rows, c_.heads));
    jobs_.reserve(static_cast<size_t>(std::max({2, c_.heads, c_.experts})));
  }

  void Plan(const Checkpoint& checkpoint, const ModelTensors& tensors, PackPlan* plan) override {
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

  void Bind(const std::byte* base) override {
    const auto floats = [&](size_t offset) { return reinterpret_cast<const float*>(base + offset); };
    const auto matrix = [&](const PackedMatrix& m) {
      return MatmulWeights{m.format, m.out, m.in, base + m.weight, m.format == WeightFormat::kFp8 ? floats(m.scales) : nullptr,
                           m.has_bias ? floats(m.bias) : nullptr};
    };
    const auto mlp = [&](const MlpOffsets& m) { return BoundMlp{matrix(m.gate), matrix(m.up), matrix(m.down)}; };
    embedding_ = base + embedding_offset_;
    norm_ = floats(norm_offset_);
    head_ = matrix(head_offset_);
    for (const LayerOffsets& from : offsets_) {
      BoundLayer& layer = layers_.emplace_back();
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

  std::string PackedLayout() const override { return "cpu-panel16-1"; }
  std::string Isa() const override { return isa_; }
  KvType kv_type() const override { return KvType::kBf16; }

  void Embed(const Step& step) override {
    ForRows(step, c_.hidden, [&](int row) {
      const StepRow& at = step.rows[static_cast<size_t>(row)];
      const size_t first = Area(at.token, c_.hidden);
      float* x = &x_[Area(row, c_.hidden)];
      if (embedding_is_f32_) {
        std::memcpy(x, reinterpret_cast<const float*>(embedding_) + first, Area(c_.hidden, sizeof(float)));
      } else {
        k_->from_bf16(reinterpret_cast<const uint16_t*>(embedding_) + first, c_.hidden, x);
      }
      rotary_.At(at.position, &cosine_[Area(row, rotary_.pairs())], &sine_[Area(row, rotary_.pairs())]);
      std::fill_n(&visible_[Area(row, c_.heads)], c_.heads, at.position + 1);
    });
    CutAttention(step);
  }

  void WriteKv(const Step& step, int layer, int half) override {
    const BoundAttention& a = layers_[static_cast<size_t>(layer)].attention[half];
    ForRows(step, c_.hidden, [&](int row) { Norm(x_, a.input_norm, row, n_); });
    jobs_ = {Job(a.q_a, n_.data(), step, q_a_.data()), Job(a.kv_a, n_.data(), step, kv_.data())};
    matmul_.Run(jobs_);
    ForRows(step, c_.q_lora + c_.kv_row(), [&](int row) {
      float* q_a = &q_a_[Area(row, c_.q_lora)];
      k_->rms_norm(q_a, a.q_a_norm, c_.q_lora, latent_eps_, q_a);
      float* kv = &kv_[Area(row, c_.kv_row())];
      k_->rms_norm(kv, a.kv_a_norm, c_.kv_lora, latent_eps_, kv);
      Rotate(kv + c_.kv_lora, row, kv + c_.kv_lora);
      std::byte* to = step.KvRow(2 * layer + half, step.rows[static_cast<size_t>(row)]);
      k_->to_bf16(kv, c_.kv_row(), reinterpret_cast<uint16_t*>(to));
    });
  }

  void Attend(const Step& step, int layer, int half) override {
    const BoundAttention& a = layers_[static_cast<size_t>(layer)].attention[half];
    RunOne(Job(a.q_b, q_a_.data(), step, q_.data()));
    jobs_.clear();
    for (int head = 0; head < c_.heads; ++head) {
      MatmulJob job = Job(a.key[static_cast<size_t>(head)], q_.data() + Area(head, c_.qk_head()), step, queries_.data() + Area(head, query_width_));
      job.x_stride = c_.heads * c_.qk_head();
      job.y_stride = c_.heads * query_width_;
      jobs_.push_back(job);
    }
    matmul_.Run(jobs_);
    ForRows(step, c_.heads * c_.rope, [&](int row) {
      for (int head = 0; head < c_.heads; ++head) {
        const size_t i = Area(row, c_.heads) + static_cast<size_t>(head);
        Rotate(&q_[i * static_cast<size_t>(c_.qk_head())] + c_.nope, row, &queries_[i * static_cast<size_t>(query_width_)] + c_.kv_lora);
      }
    });
    const auto tile = [&](int item, int thread) { AttendTile(step, 2 * layer + half, items_[static_cast<size_t>(item)], thread); };
    const auto tiles = static_cast<int>(items_.size());
    if (attention_products_ <= kSerialAttention) {
      for (int item = 0; item < tiles; ++item) tile(item, 0);
    } else {
      pool_->Run(tiles, tile);
    }
    jobs_.clear();
    for (int head = 0; head < c_.heads; ++head) {
      MatmulJob job = Job(a.value[static_cast<size_t>(head)], context_.data() + Area(head, c_.kv_lora), step, heads_out_.data() + Area(head, c_.v_head));
      job.x_stride = c_.heads * c_.kv_lora;
      job.y_stride = c_.heads * c_.v_head;
      jobs_.push_back(job);
    }
    matmul_.Run(jobs_);
    RunOne(Job(a.o, heads_out_.data(), step, y_.data()));
    ForRows(step, c_.hidden, [&](int row) {
      k_->add(&x_[Area(row, c_.hidden)], &y_[Area(row, c_.hidden)], c_.hidden);
      Norm(x_, a.post_norm, row, n_);
    });
  }

  void Experts(const Step& step, int layer, Routing* routing) override {
    const BoundLayer& l = layers_[static_cast<size_t>(layer)];
    const auto topk = static_cast<size_t>(c_.topk);
    const auto slots = static_cast<size_t>(c_.slots());
    RunOne(Job(l.router, n_.data(), step, probabilities_.data()));
    ForRows(step, c_.slots() * 4, [&](int row) {
      const auto r = static_cast<size_t>(row);
      k_->softmax(&probabilities_[r * slots], c_.slots());
      ChooseExperts({&probabilities_[r * slots], slots}, {l.correction_bias, slots}, {&chosen_[r * topk], topk});
    });
    routing->Settle({chosen_.data(), step.rows.size() * topk});
    Assign(step.rows.size());
    jobs_.clear();
    for (size_t e = 0; e < l.experts.size(); ++e) {
      const int first = expert_first_[e];
      const int rows = expert_first_[e + 1] - first;
      if (rows == 0) continue;
      jobs_.push_back({l.experts[e].gate, &l.experts[e].up, n_.data(), c_.hidden, &assigned_[static_cast<size_t>(first)], rows,
                       wide_.data() + Area(first, c_.expert_ffn), c_.expert_ffn});
    }
    matmul_.Run(jobs_);
    jobs_.clear();
    for (size_t e = 0; e < l.experts.size(); ++e) {
      const int first = expert_first_[e];
      const int rows = expert_first_[e + 1] - first;
      if (rows == 0) continue;
      jobs_.push_back({l.experts[e].down, nullptr, wide_.data() + Area(first, c_.expert_ffn), c_.expert_ffn, nullptr, rows,
                       expert_out_.data() + Area(first, c_.hidden), c_.hidden});
    }
    matmul_.Run(jobs_);
    ForRows(step, c_.topk * c_.hidden, [&](int row) { Combine(row); });
  }

  void DenseMlp(const Step& step, int layer, int half) override {
    const BoundMlp& mlp = layers_[static_cast<size_t>(layer)].mlp[half];
    MatmulJob job = Job(mlp.gate, n_.data(), step, wide_.data());
    job.up = &mlp.up;
    RunOne(job);
    RunOne(Job(mlp.down, wide_.data(), step, y_.data()));
    ForRows(step, c_.hidden, [&](int row) { k_->add(&x_[Area(row, c_.hidden)], &y_[Area(row, c_.hidden)], c_.hidden); });
  }

  void JoinShortcut(const Step& step, int) override {
    ForRows(step, c_.hidden, [&](int row) { k_->add(&x_[Area(row, c_.hidden)], &m_[Area(row, c_.hidden)], c_.hidden); });
  }

  void Logits(const Step& step, float* logits) override {
    for (size_t i = 0; i < step.wanted.size(); ++i) {
      k_->rms_norm(&x_[Area(step.wanted[i], c_.hidden)], norm_, c_.hidden, c_.rms_eps, &n_[i * static_cast<size_t>(c_.hidden)]);
    }
    MatmulJob job = Job(head_, n_.data(), step, logits);
    job.rows = static_cast<int>(step.wanted.size());
    RunOne(job);
  }

 private:
  static MatmulJob Job(const MatmulWeights& w, const float* x, const Step& step, float* y) {
    return {w, nullptr, x, w.in, nullptr, static_cast<int>(step.rows.size()), y, w.out};
  }

  void RunOne(const MatmulJob& job) { matmul_.Run({&job, 1}); }

  template <typename Body>
  void ForRows(const Step& step, int values_per_row, Body&& body) {
    const auto rows = static_cast<int>(step.rows.size());
    if (int64_t{rows} * values_per_row <= kSerialValues) {
      for (int row = 0; row < rows; ++row) body(row);
      return;
    }
    const int bands = std::min(rows, 4 * pool_->threads());
    pool_->Run(bands, [&](int band, int) {
      const auto border = [&](int b) { return static_cast<int>(int64_t{b} * rows / bands); };
      for (int row = border(band); row < border(band + 1); ++row) body(row);
    });
  }

  void Norm(const std::vector<float>& x, const float* weight, int row, std::vector<float>& y) {
    k_->rms_norm(&x[Area(row, c_.hidden)], weight, c_.hidden, c_.rms_eps, &y[Area(row, c_.hidden)]);
  }

  void Rotate(const float* from, int row, float* to) const {
    const float* cosine = &cosine_[Area(row, rotary_.pairs())];
    const float* sine = &sine_[Area(row, rotary_.pairs())];
    for (int i = 0; i < rotary_.pairs(); ++i) {
      const float even = from[2 * i];
      const float odd = from[2 * i + 1];
      to[2 * i] = even * cosine[i] - odd * sine[i];
      to[2 * i + 1] = odd * cosine[i] + even * sine[i];
    }
  }

  // Cuts the queries of a step (rows * heads, per sequence) into tiles, the largest that still feed all threads.
  void CutAttention(const Step& step) {
    const int all = static_cast<int>(step.rows.size()) * c_.heads;
    const int most = std::clamp(RoundUp(all / (2 * pool_->threads()), 4), 4, kAttentionQueries);
    items_.clear();
    attention_products_ = 0;
    int first = 0;
    for (const SequenceRows& sequence : step.sequences) {
      attention_products_ += int64_t{sequence.count} * c_.heads * (sequence.position + sequence.count) * (c_.kv_row() + c_.kv_lora);
      const int end = first + sequence.count * c_.heads;
      for (; first < end; first += std::min(most, end - first)) items_.push_back({first, std::min(most, end - first), sequence.block_table});
    }
  }

  void AttendTile(const Step& step, int attention, const AttentionItem& item, int thread) {
    const auto first = static_cast<size_t>(item.first);
    const AttentionTile tile = {.q = &queries_[first * static_cast<size_t>(query_width_)],
                                .q_stride = query_width_,
                                .queries = item.count,
                                .visible = &visible_[first],
                                .pages = reinterpret_cast<const uint8_t*>(step.kv.page(attention, 0)),
                                .page_bytes = static_cast<int64_t>(step.kv.layout.page_bytes()),
                                .block_table = item.block_table,
                                .latent = c_.kv_lora,
                                .rope = c_.rope,
                                .out = &context_[first * static_cast<size_t>(c_.kv_lora)],
                                .out_stride = c_.kv_lora,
                                .scratch = &scratch_[Area(thread, kAttentionScratch)]};
    k_->attention(&tile);
  }

  // Sorts the choices by expert: assigned_ lists rows, place_ says where each choice's output will be (-1: identity).
  void Assign(size_t rows) {
    const auto topk = static_cast<size_t>(c_.topk);
    std::fill(expert_first_.begin(), expert_first_.end(), 0);
    for (size_t i = 0; i < rows * topk; ++i) {
      if (chosen_[i] < c_.experts) ++expert_first_[static_cast<size_t>(chosen_[i]) + 1];
    }
    for (size_t e = 1; e < expert_first_.size(); ++e) expert_first_[e] += expert_first_[e - 1];
    for (size_t i = 0; i < rows * topk; ++i) {
      place_[i] = chosen_[i] < c_.experts ? expert_first_[static_cast<size_t>(chosen_[i])]++ : -1;
      if (place_[i] >= 0) assigned_[static_cast<size_t>(place_[i])] = static_cast<int32_t>(i / topk);
    }
    for (size_t e = expert_first_.size() - 1; e > 0; --e) expert_first_[e] = expert_first_[e - 1];
    expert_first_[0] = 0;
  }

  // m = sum of the chosen experts' weighted outputs, and the identity experts' weight times n, in order of choice.
  void Combine(int row) {
    float* m = &m_[Area(row, c_.hidden)];
    std::fill_n(m, c_.hidden, 0.0F);
    float identity = 0;
    for (int k = 0; k < c_.topk; ++k) {
      const size_t i = Area(row, c_.topk) + static_cast<size_t>(k);
      const float weight = probabilities_[Area(row, c_.slots()) + static_cast<size_t>(chosen_[i])] * c_.routed_scale;
      if (place_[i] < 0) {
        identity += weight;
      } else {
        k_->add_scaled(m, weight, &expert_out_[Area(place_[i], c_.hidden)], c_.hidden);
      }
    }
    if (identity != 0) k_->add_scaled(m, identity, &n_[Area(row, c_.hidden)], c_.hidden);
  }

  const ModelConfig c_;
  const float latent_eps_;
  const std::string isa_;
  const CpuKernels* const k_;
  ThreadPool* const pool_;
  const Rotary rotary_;
  const int query_width_;  // kv_row, filled up
  MatmulList matmul_;

  bool embedding_is_f32_ = false;
  size_t embedding_offset_ = 0;
  size_t norm_offset_ = 0;
  PackedMatrix head_offset_;
  std::vector<LayerOffsets> offsets_;
  const std::byte* embedding_ = nullptr;
  const float* norm_ = nullptr;
  MatmulWeights head_;
  std::vector<BoundLayer> layers_;

  // Activations, [rows, width].
  std::vector<float> x_, n_, m_, y_, q_a_, q_, kv_, queries_, context_, heads_out_, wide_, expert_out_, probabilities_, cosine_, sine_;
  std::vector<int32_t> visible_;       // [rows, heads]
  std::vector<int32_t> chosen_;        // [rows, topk]
  std::vector<int32_t> place_;         // [rows, topk]
  std::vector<int32_t> assigned_;      // rows, by expert
  std::vector<int32_t> expert_first_;  // [experts + 1] into assigned_
  std::vector<float> scratch_;         // per thread
  std::vector<AttentionItem> items_;
  int64_t attention_products_ = 0;     // per attention of this step, roughly
  std::vector<MatmulJob> jobs_;
};

}  // namespace

std::vector<std::string> CpuIsas() {
  std::vector<std::string> names;
  for (const auto& [name, kernels] : UsableKernels()) names.push_back(name);
  return names;
}

Result<std::unique_ptr<Backend>> MakeCpuBackend(const ModelConfig& config, float latent_eps, int max_rows,
                                                const std::string& isa, ThreadPool* pool) {
  const auto usable = UsableKernels();
  const auto chosen = isa.empty() ? usable.end() - 1 : std::find_if(usable.begin(), usable.end(), [&](const auto& u) { return u.first == isa; });
  if (chosen == usable.end()) return Status(Code::kBadArgument, "this machine has no code path " + isa);
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(config, latent_eps, max_rows, chosen->first, chosen->second, pool));
}

}  // namespace margay
