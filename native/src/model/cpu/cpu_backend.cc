#include "model/cpu/cpu_backend.h"

#include <cstring>

namespace margay {

CpuBackend::CpuBackend(const ModelConfig& config, const BackendOptions& options, const CodePath& path, ThreadPool* pool)
    : c_(config),
      row_format_(PayloadFormat::kBf16, config.hidden),
      latent_eps_(options.latent_eps),
      max_rows_(options.max_rows),
      deterministic_(options.deterministic),
      path_(path),
      pool_(pool),
      rotary_(config),
      query_width_((config.kv_row() + kPanel - 1) / kPanel * kPanel),
      weights_(config, options.weights),
      choice_(options.weights),
      matmul_(path.linear, path.pointwise, pool, std::max({2, config.heads, config.experts})),
      attention_(path.attention, pool, {config.heads, config.kv_lora, config.rope}, options.max_rows),
      expanded_(path, pool, {config.heads, config.kv_lora, config.nope, config.rope, config.v_head}, options.max_rows) {
  const auto wide = [&](int width) { return std::vector<float>(Area(options.max_rows, width)); };
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
  wide_ = wide(c_.ffn);
  probabilities_ = wide(c_.slots());
  cosine_ = wide(c_.rope);
  sine_ = cosine_;
  chosen_.resize(Area(options.max_rows, c_.topk));
  chosen_weights_.resize(chosen_.size());
  expert_first_.resize(static_cast<size_t>(c_.experts) + 1);
  sources_.resize(Area(pool->threads(), c_.topk + 1));
  source_weights_.resize(sources_.size());
  sums_.resize(Area(pool->threads(), c_.hidden));
  MakeRoom(1);
  for (auto* sequences : {&to_absorb_, &to_expand_}) sequences->reserve(static_cast<size_t>(options.max_rows));
  absorbed_rows_.reserve(static_cast<size_t>(options.max_rows));
  absorbed_.resize(static_cast<size_t>(options.max_rows));
  jobs_.reserve(static_cast<size_t>(std::max({2, c_.heads, c_.experts})));
}

void CpuBackend::Plan(const Checkpoint& checkpoint, const ModelTensors& tensors, PackPlan* plan) {
  weights_.Plan(checkpoint, tensors, plan);
  if (weights_.has_draft()) joined_.resize(2 * x_.size());
}

void CpuBackend::Bind(const std::byte* base) { weights_.Bind(base); }

void CpuBackend::Embed(const Step& step) {
  pending_ = Pending::kNothing;
  EmbedInto(x_, weights_.embedding(), step);
}

void CpuBackend::EmbedInto(std::vector<float>& y, const CpuTable& table, const Step& step) {
  ForRows(step, c_.hidden, [&](int row) {
    const StepRow& at = step.rows[static_cast<size_t>(row)];
    const size_t first = Area(at.token, c_.hidden);
    float* to = &y[Area(row, c_.hidden)];
    if (table.is_f32) {
      std::memcpy(to, reinterpret_cast<const float*>(table.rows) + first, Area(c_.hidden, sizeof(float)));
    } else {
      path_.pointwise->from_bf16(reinterpret_cast<const uint16_t*>(table.rows) + first, c_.hidden, to);
    }
  });
  PlanAttention(step);
}

void CpuBackend::Settle(const Step& step, const float* weight, float* n, ExpertExchange* exchange) {
  if (pending_ == Pending::kNothing && weight == nullptr) return;
  ForRows(step, 3 * c_.hidden, [&](int row) {
    const size_t at = Area(row, c_.hidden);
    if (pending_ == Pending::kNothing) {
      path_.pointwise->rms_norm(&x_[at], weight, c_.hidden, c_.rms_eps, &n[at]);
    } else {
      const float* m = pending_ == Pending::kBranchAndShortcut ? &m_[at] : nullptr;
      path_.pointwise->add_norm(&x_[at], &y_[at], m, weight, c_.hidden, c_.rms_eps, &n[at]);
    }
    if (exchange != nullptr) exchange->PutRow(row, &n[at]);
  });
  pending_ = Pending::kNothing;
}

const float* CpuBackend::NormBeforeHead(FinalNorm which) const {
  return which == FinalNorm::kTarget ? weights_.norm() : weights_.draft().norm;
}

void CpuBackend::Logits(const Step& step, FinalNorm norm, float* logits) {
  Settle(step, nullptr, n_.data());
  if (step.wanted.empty()) return;
  for (size_t i = 0; i < step.wanted.size(); ++i) {
    path_.pointwise->rms_norm(&x_[Area(step.wanted[i], c_.hidden)], NormBeforeHead(norm), c_.hidden, c_.rms_eps, &n_[i * static_cast<size_t>(c_.hidden)]);
  }
  MatmulJob job = Job(weights_.head(), n_.data(), step, logits);
  job.rows = static_cast<int>(step.wanted.size());
  RunOne(job);
}

std::vector<std::string> CpuIsas() {
  std::vector<std::string> names;
  for (const CodePath& path : UsableCodePaths()) names.push_back(path.name);
  return names;
}

Result<std::unique_ptr<Backend>> MakeCpuBackend(const ModelConfig& config, const BackendOptions& options, ThreadPool* pool) {
  const std::string& isa = options.isa;
  const std::vector<CodePath> usable = UsableCodePaths();
  const std::string& name = isa.empty() ? BestCodePath(usable, !options.deterministic).name : isa;
  const auto chosen = std::find_if(usable.begin(), usable.end(), [&](const CodePath& p) { return p.name == name; });
  if (chosen == usable.end()) return Status(Code::kBadArgument, "this machine has no code path " + isa);
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(config, options, *chosen, pool));
}

}  // namespace margay
