// The model in plain fp32, operation by operation as the specification states it.
#include <algorithm>
#include <cstring>

#include "kernels/linear/linear_ref.h"
#include "kernels/pointwise/pointwise_ref.h"
#include "model/backend.h"
#include "model/rotary.h"

namespace margay {
namespace {

constexpr int64_t kReadRows = 64;

size_t Area(int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }

// Weights are stored [in, out], so that a row's outputs are independent sums.
struct Linear {
  size_t weight = 0;  // offsets into the packed weights
  size_t bias = 0;
  bool has_bias = false;
  int in = 0;
  int out = 0;
};

struct Attention {
  size_t input_norm, q_a_norm, kv_a_norm, post_norm;
  Linear q_a, q_b, kv_a, o;
  std::vector<Linear> key;    // per head: query part [nope] -> latent [kv_lora]
  std::vector<Linear> value;  // per head: context [kv_lora] -> [v_head]
};

struct Mlp {
  Linear gate, up, down;
};

struct Layer {
  Attention attention[2];
  Mlp mlp[2];
  Linear router;
  size_t correction_bias;
  std::vector<Mlp> experts;
};

// The draft layer's attention and mlp are those of the first half of layer number `layers`.
struct Draft {
  size_t embedding, embedding_norm, hidden_norm, norm;
  Linear join;
};

class RefBackend final : public Backend {
 public:
  RefBackend(const ModelConfig& config, const BackendOptions& options, ThreadPool* pool)
      : c_(config), latent_eps_(options.latent_eps), pool_(pool), rotary_(config) {
    const auto wide = [&](int width) { return std::vector<float>(Area(options.max_rows, width)); };
    x_ = wide(c_.hidden);
    n_ = wide(c_.hidden);
    branch_ = wide(c_.hidden);
    outputs_ = wide(c_.topk * c_.hidden);
    received_.resize(Hidden());
    result_.resize(Hidden());
    y_ = wide(c_.hidden);
    q_a_ = wide(c_.q_lora);
    q_ = wide(c_.heads * c_.qk_head());
    kv_ = wide(c_.kv_row());
    latent_q_ = wide(c_.heads * c_.kv_lora);
    heads_out_ = wide(c_.heads * c_.v_head);
    gate_ = wide(std::max(c_.ffn, c_.expert_ffn));
    up_ = gate_;
    probabilities_ = wide(c_.slots());
    cosine_ = wide(rotary_.pairs());
    sine_ = cosine_;
    chosen_.resize(Area(options.max_rows, c_.topk));
    chosen_weights_.resize(chosen_.size());
    scores_.resize(Area(pool->threads(), c_.context_length));
  }

  void Plan(const Checkpoint& checkpoint, const ModelTensors& tensors, PackPlan* plan) override {
    checkpoint_ = &checkpoint;
    plan_ = plan;
    embedding_ = AddRows(tensors.embedding, c_.vocab_size);
    norm_ = AddRows(tensors.norm, 1);
    head_ = AddLinear(tensors.head);
    for (const LayerTensors& from : tensors.layers) {
      Layer& layer = layers_.emplace_back();
      for (int half = 0; half < 2; ++half) {
        layer.attention[half] = AddAttention(from.attention[half]);
        layer.mlp[half] = AddMlp(from.mlp[half]);
      }
      layer.router = AddLinear(from.router);
      layer.correction_bias = AddRows(from.correction_bias, 1);
      for (const MlpTensors& expert : from.experts) layer.experts.push_back(AddMlp(expert));
    }
    if (tensors.draft.has_value()) PlanDraft(tensors);
  }

  void Bind(const std::byte* base) override { base_ = base; }
  std::span<const std::byte> ExpertWeights(int layer, int expert) const override {
    const Mlp& mlp = layers_[static_cast<size_t>(layer)].experts[static_cast<size_t>(expert)];
    return {base_ + mlp.gate.weight, base_ + mlp.down.weight + Area(mlp.down.in, mlp.down.out) * sizeof(float)};
  }
  std::string PackedLayout() const override { return "ref-1"; }
  std::string Isa() const override { return "ref"; }
  KvType kv_type() const override { return KvType::kF32; }
  PayloadFormat payload() const override { return PayloadFormat::kFp32; }
  CombineMode combine() const override { return CombineMode::kPerExpert; }
  void MakeRoom(int) override {}  // rows of other ranks are computed one by one

  void Embed(const Step& step) override { EmbedInto(x_, embedding_, step); }

  void EmbedDraft(const Step& step, std::span<const int> sources, FinalNorm made_by) override {
    EmbedInto(n_, draft_.embedding, step);
    for (size_t row = 0; row < step.rows.size(); ++row) {
      float* embedded = &joined_[2 * row * Hidden()];
      float* hidden = embedded + Hidden();
      const float* x = &x_[static_cast<size_t>(sources[row]) * Hidden()];
      reference::RmsNorm(&n_[row * Hidden()], At(draft_.embedding_norm), c_.hidden, c_.rms_eps, 1, embedded);
      reference::RmsNorm(x, Norm(made_by), c_.hidden, c_.rms_eps, 1, hidden);
      reference::RmsNorm(hidden, At(draft_.hidden_norm), c_.hidden, c_.rms_eps, 1, hidden);
    }
    Apply(draft_.join, joined_.data(), Rows(step), x_.data());
  }

  void WriteKv(const Step& step, int layer, int half) override {
    const Attention& a = layers_[static_cast<size_t>(layer)].attention[half];
    const int rows = Rows(step);
    Norm(x_, a.input_norm, rows, c_.hidden, c_.rms_eps, 1, n_);
    Apply(a.q_a, n_.data(), rows, q_a_.data());
    Norm(q_a_, a.q_a_norm, rows, c_.q_lora, latent_eps_, 1, q_a_);
    Apply(a.q_b, q_a_.data(), rows, q_.data());
    Apply(a.kv_a, n_.data(), rows, kv_.data());
    pool_->Run(rows, [&](int row, int) {
      const size_t pairs = static_cast<size_t>(rotary_.pairs());
      const float* cosine = &cosine_[static_cast<size_t>(row) * pairs];
      const float* sine = &sine_[static_cast<size_t>(row) * pairs];
      float* q = &q_[Area(row, c_.heads * c_.qk_head())];
      for (int i = 0; i < c_.heads * c_.qk_head(); ++i) q[i] *= c_.q_scale();
      for (int head = 0; head < c_.heads; ++head) {
        reference::Rotate(q + Area(head, c_.qk_head()) + c_.nope, rotary_.pairs(), cosine, sine);
      }
      float* kv = &kv_[Area(row, c_.kv_row())];
      reference::RmsNorm(kv, At(a.kv_a_norm), c_.kv_lora, latent_eps_, c_.kv_scale(), kv);
      reference::Rotate(kv + c_.kv_lora, rotary_.pairs(), cosine, sine);
      std::memcpy(step.KvRow(2 * layer + half, step.rows[static_cast<size_t>(row)]), kv, step.kv.layout.row_bytes());
    });
  }

  void Narrow(const Step&, std::span<const int> kept) override {
    const auto keep = [&](std::vector<float>& values, size_t width) {
      for (size_t i = 0; i < kept.size(); ++i) {
        if (kept[i] != static_cast<int>(i)) std::copy_n(&values[static_cast<size_t>(kept[i]) * width], width, &values[i * width]);
      }
    };
    keep(x_, Hidden());
    keep(q_, Area(c_.heads, c_.qk_head()));
  }

  void Attend(const Step& step, int layer, int half, ExpertExchange* exchange) override {
    const Attention& a = layers_[static_cast<size_t>(layer)].attention[half];
    const int rows = Rows(step);
    for (int head = 0; head < c_.heads; ++head) {
      reference::Linear({q_.data() + Area(head, c_.qk_head()), c_.heads * c_.qk_head(), rows,
                         At(a.key[static_cast<size_t>(head)].weight), nullptr, c_.nope, c_.kv_lora,
                         latent_q_.data() + Area(head, c_.kv_lora), c_.heads * c_.kv_lora},
                        pool_);
    }
    pool_->Run(rows * c_.heads, [&](int item, int thread) { AttendHead(step, 2 * layer + half, item / c_.heads, item % c_.heads, thread); });
    for (int head = 0; head < c_.heads; ++head) {
      reference::Linear({latent_q_.data() + Area(head, c_.kv_lora), c_.heads * c_.kv_lora, rows,
                         At(a.value[static_cast<size_t>(head)].weight), nullptr, c_.kv_lora, c_.v_head,
                         heads_out_.data() + Area(head, c_.v_head), c_.heads * c_.v_head},
                        pool_);
    }
    Apply(a.o, heads_out_.data(), rows, y_.data());
    Accumulate(y_, rows, x_);
    Norm(x_, a.post_norm, rows, c_.hidden, c_.rms_eps, 1, NormOf(half));
    for (int row = 0; row < rows && exchange != nullptr; ++row) exchange->PutRow(row, &NormOf(half)[Area(row, c_.hidden)]);
  }

  void Route(const Step& step, int layer, Routing* routing) override {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    Apply(l.router, branch_.data(), Rows(step), probabilities_.data());
    const auto slots = static_cast<size_t>(c_.slots());
    const auto topk = static_cast<size_t>(c_.topk);
    for (size_t row = 0; row < step.rows.size(); ++row) {
      reference::Softmax(&probabilities_[row * slots], c_.slots());
      ChooseExperts({&probabilities_[row * slots], slots}, {At(l.correction_bias), slots}, {&chosen_[row * topk], topk});
    }
    routing->Settle({chosen_.data(), step.rows.size() * topk});
    for (size_t i = 0; i < step.rows.size() * topk; ++i) {
      chosen_weights_[i] = probabilities_[i / topk * slots + static_cast<size_t>(chosen_[i])] * c_.routed_scale;
    }
  }

  void Experts(const Step& step, int layer) override {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    const auto topk = static_cast<size_t>(c_.topk);
    for (size_t i = 0; i < step.rows.size() * topk; ++i) {
      if (chosen_[i] >= c_.experts) continue;
      RunMlp(l.experts[static_cast<size_t>(chosen_[i])], &branch_[i / topk * Hidden()], 1, &outputs_[i * Hidden()]);
    }
  }

  DispatchRows Routed(const Step& step) const override {
    return {Rows(step), branch_.data(), chosen_.data(), chosen_weights_.data()};
  }

  void ServeExperts(std::span<const ReceivedRow> rows, int layer, ExpertExchange* exchange) override {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    for (size_t i = 0; i < rows.size(); ++i) {
      exchange->Decode(static_cast<int>(i), received_.data());
      for (size_t k = 0; k < rows[i].choices.size(); ++k) {
        RunMlp(l.experts[static_cast<size_t>(rows[i].choices[k].expert)], received_.data(), 1, result_.data());
        exchange->PutResult(static_cast<int>(i), static_cast<int>(k), result_.data());
      }
    }
  }

  void DenseMlp(const Step& step, int layer, int half) override {
    RunMlp(layers_[static_cast<size_t>(layer)].mlp[half], NormOf(half).data(), Rows(step), y_.data());
    Accumulate(y_, Rows(step), x_);
  }

  // m begins with the identity term; outputs are added to it by rising expert, as an exchange does.
  void JoinShortcut(const Step& step, const ExpertExchange* exchange) override {
    for (int row = 0; row < Rows(step); ++row) {
      float* m = &y_[Area(row, c_.hidden)];
      float identity = 0;
      for (size_t i = Area(row, c_.topk); i < Area(row + 1, c_.topk); ++i) {
        if (chosen_[i] >= c_.experts) identity += chosen_weights_[i];
      }
      for (int i = 0; i < c_.hidden; ++i) m[i] = identity * branch_[Area(row, c_.hidden) + static_cast<size_t>(i)];
      if (exchange != nullptr) {
        exchange->AddResults(row, m);
      } else {
        AddOutputs(row, m);
      }
    }
    Accumulate(y_, Rows(step), x_);
  }

  void Logits(const Step& step, FinalNorm norm, float* logits) override {
    for (const int row : step.wanted) {
      reference::RmsNorm(&x_[Area(row, c_.hidden)], Norm(norm), c_.hidden, c_.rms_eps, 1, n_.data());
      Apply(head_, n_.data(), 1, logits);
      logits += c_.vocab_size;
    }
  }

 private:
  size_t Hidden() const { return static_cast<size_t>(c_.hidden); }
  static int Rows(const Step& step) { return static_cast<int>(step.rows.size()); }
  const float* At(size_t offset) const { return reinterpret_cast<const float*>(base_ + offset); }

  void AddOutputs(int row, float* m) const {
    for (int32_t expert = 0; expert < c_.experts; ++expert) {
      for (size_t k = Area(row, c_.topk); k < Area(row + 1, c_.topk); ++k) {
        if (chosen_[k] != expert) continue;
        for (size_t i = 0; i < Hidden(); ++i) m[i] += chosen_weights_[k] * outputs_[k * Hidden() + i];
      }
    }
  }

  // n of the post-attention norm.
  std::vector<float>& NormOf(int half) { return half == 0 ? branch_ : n_; }

  const float* Norm(FinalNorm which) const { return At(which == FinalNorm::kTarget ? norm_ : draft_.norm); }

  void EmbedInto(std::vector<float>& out, size_t table, const Step& step) {
    for (size_t row = 0; row < step.rows.size(); ++row) {
      const float* from = At(table) + static_cast<size_t>(step.rows[row].token) * static_cast<size_t>(c_.hidden);
      std::memcpy(&out[row * Hidden()], from, Hidden() * sizeof(float));
      const size_t pairs = static_cast<size_t>(rotary_.pairs());
      rotary_.At(step.rows[row].position, &cosine_[row * pairs], &sine_[row * pairs]);
    }
  }

  // One query head of one row over all rows up to its own; the context replaces the query in latent_q_.
  void AttendHead(const Step& step, int attention, int row, int head, int thread) {
    const StepRow& at = step.rows[static_cast<size_t>(row)];
    float* latent = &latent_q_[Area(row, c_.heads * c_.kv_lora) + Area(head, c_.kv_lora)];
    const float* rope = &q_[Area(row, c_.heads * c_.qk_head()) + Area(head, c_.qk_head())] + c_.nope;
    float* scores = &scores_[Area(thread, c_.context_length)];
    const float scale = c_.SoftmaxScale();
    const auto key = [&](int s) { return reinterpret_cast<const float*>(step.KvRow(attention, at.block_table, s)); };
    for (int s = 0; s <= at.position; ++s) {
      scores[s] = (reference::Dot(latent, key(s), c_.kv_lora) + reference::Dot(rope, key(s) + c_.kv_lora, c_.rope)) * scale;
    }
    reference::Softmax(scores, at.position + 1);
    std::fill_n(latent, c_.kv_lora, 0.0F);
    for (int s = 0; s <= at.position; ++s) {
      const float* values = key(s);
      for (int i = 0; i < c_.kv_lora; ++i) latent[i] += scores[s] * values[i];
    }
  }

  void Norm(const std::vector<float>& x, size_t weight, int rows, int width, float eps, float scale, std::vector<float>& y) {
    for (int row = 0; row < rows; ++row) reference::RmsNorm(&x[Area(row, width)], At(weight), width, eps, scale, &y[Area(row, width)]);
  }

  void Apply(const Linear& linear, const float* x, int rows, float* y) {
    const float* bias = linear.has_bias ? At(linear.bias) : nullptr;
    reference::Linear({x, linear.in, rows, At(linear.weight), bias, linear.in, linear.out, y, linear.out}, pool_);
  }

  void RunMlp(const Mlp& mlp, const float* x, int rows, float* y) {
    Apply(mlp.gate, x, rows, gate_.data());
    Apply(mlp.up, x, rows, up_.data());
    reference::SiluMul(gate_.data(), up_.data(), rows * mlp.gate.out, gate_.data());
    Apply(mlp.down, gate_.data(), rows, y);
  }

  void Accumulate(const std::vector<float>& from, int rows, std::vector<float>& to) const {
    for (size_t i = 0; i < Area(rows, c_.hidden); ++i) to[i] += from[i];
  }

  size_t AddRows(const Tensor* tensor, int rows) {
    const size_t count = Area(rows, static_cast<int>(tensor->shape.back()));
    return plan_->Add(count * sizeof(float), [checkpoint = checkpoint_, tensor, rows](std::byte* out) {
      return checkpoint->ReadRows(*tensor, nullptr, 0, rows, reinterpret_cast<float*>(out));
    });
  }

  // Rows [first, first + out) of the tensor, transposed.
  Linear AddTransposed(const LinearTensors& from, int first, int out) {
    Linear linear{0, 0, false, from.in, out};
    linear.weight = plan_->Add(Area(from.in, out) * sizeof(float), [checkpoint = checkpoint_, from, first, out](std::byte* bytes) {
      auto* to = reinterpret_cast<float*>(bytes);
      std::vector<float> some(static_cast<size_t>(kReadRows * from.in));
      for (int64_t row = 0; row < out; row += kReadRows) {
        const int64_t count = std::min<int64_t>(kReadRows, out - row);
        if (Status read = checkpoint->ReadRows(*from.weight, from.scales, first + row, count, some.data()); !read.ok()) return read;
        for (int64_t k = 0; k < from.in; ++k) {
          for (int64_t r = 0; r < count; ++r) to[k * out + row + r] = some[static_cast<size_t>(r * from.in + k)];
        }
      }
      return Status::Ok();
    });
    return linear;
  }

  Linear AddLinear(const LinearTensors& from) {
    Linear linear = AddTransposed(from, 0, from.out);
    linear.has_bias = from.bias != nullptr;
    if (linear.has_bias) linear.bias = AddRows(from.bias, 1);
    return linear;
  }

  // Rows of kv_b as they stand: [nope, kv_lora] maps a head's query part to the latent.
  Linear AddKey(const LinearTensors& from, int first) {
    Linear linear{0, 0, false, c_.nope, c_.kv_lora};
    linear.weight = plan_->Add(Area(c_.nope, c_.kv_lora) * sizeof(float),
                               [checkpoint = checkpoint_, from, first, rows = c_.nope](std::byte* out) {
                                 return checkpoint->ReadRows(*from.weight, from.scales, first, rows, reinterpret_cast<float*>(out));
                               });
    return linear;
  }

  Attention AddAttention(const AttentionTensors& from) {
    Attention a{};
    a.input_norm = AddRows(from.input_norm, 1);
    a.q_a_norm = AddRows(from.q_a_norm, 1);
    a.kv_a_norm = AddRows(from.kv_a_norm, 1);
    a.post_norm = AddRows(from.post_norm, 1);
    a.q_a = AddLinear(from.q_a);
    a.q_b = AddLinear(from.q_b);
    a.kv_a = AddLinear(from.kv_a);
    a.o = AddLinear(from.o);
    for (int head = 0; head < c_.heads; ++head) {
      const int first = head * (c_.nope + c_.v_head);
      a.key.push_back(AddKey(from.kv_b, first));
      a.value.push_back(AddTransposed(from.kv_b, first + c_.nope, c_.v_head));
    }
    return a;
  }

  void PlanDraft(const ModelTensors& tensors) {
    const DraftTensors& from = *tensors.draft;
    draft_.embedding = from.embedding == tensors.embedding ? embedding_ : AddRows(from.embedding, c_.vocab_size);
    draft_.embedding_norm = AddRows(from.embedding_norm, 1);
    draft_.hidden_norm = AddRows(from.hidden_norm, 1);
    draft_.norm = AddRows(from.norm, 1);
    draft_.join = AddLinear(from.join);
    Layer& layer = layers_.emplace_back();
    layer.attention[0] = AddAttention(from.attention);
    layer.mlp[0] = AddMlp(from.mlp);
    joined_.resize(2 * x_.size());
  }

  Mlp AddMlp(const MlpTensors& from) { return {AddLinear(from.gate), AddLinear(from.up), AddLinear(from.down)}; }

  const ModelConfig c_;
  const float latent_eps_;
  ThreadPool* const pool_;
  const Rotary rotary_;
  const Checkpoint* checkpoint_ = nullptr;
  PackPlan* plan_ = nullptr;
  const std::byte* base_ = nullptr;
  size_t embedding_ = 0;
  size_t norm_ = 0;
  Linear head_;
  std::vector<Layer> layers_;
  Draft draft_{};
  // Activations, [rows, width]. branch_ is n of a layer's first half: it outlives that of the second.
  std::vector<float> x_, n_, branch_, outputs_, y_, q_a_, q_, kv_, latent_q_, heads_out_, gate_, up_, probabilities_, cosine_, sine_, scores_;
  std::vector<float> received_, result_;  // a row of the group, and what an expert makes of it
  std::vector<float> joined_;  // of a draft: [rows, 2 * hidden]
  std::vector<int32_t> chosen_;        // [rows, topk], with
  std::vector<float> chosen_weights_;  // their weights, and outputs_: their outputs
};

}  // namespace

std::unique_ptr<Backend> MakeRefBackend(const ModelConfig& config, const BackendOptions& options, ThreadPool* pool) {
  return std::make_unique<RefBackend>(config, options, pool);
}

}  // namespace margay
