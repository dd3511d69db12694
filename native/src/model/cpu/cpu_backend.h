// The model on vector units: packed weights, fp32 activations, bf16 KV, absorbed attention.
//
// The parts of a step have a file each: cpu_attention.cc, cpu_experts.cc, cpu_mlp.cc, cpu_draft.cc; the rest is in cpu_backend.cc.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/attention/attention_list.h"
#include "kernels/attention/expanded_list.h"
#include "kernels/code_path.h"
#include "kernels/linear/matmul_list.h"
#include "model/backend.h"
#include "model/cpu/cpu_weights.h"
#include "model/rotary.h"

namespace margay {

class CpuBackend final : public Backend {
 public:
  CpuBackend(const ModelConfig& config, const BackendOptions& options, const CodePath& path, ThreadPool* pool);

  void Plan(const Checkpoint& checkpoint, const ModelTensors& tensors, PackPlan* plan) override;
  void Bind(const std::byte* base) override;
  std::string PackedLayout() const override { return choice_ == WeightChoice::kInt8 ? "cpu-panel16-3 int8" : "cpu-panel16-3"; }
  std::string Isa() const override { return path_.name; }
  KvType kv_type() const override { return KvType::kBf16; }

  void Embed(const Step& step) override;
  void EmbedDraft(const Step& step, std::span<const int> sources, FinalNorm made_by) override;
  void WriteKv(const Step& step, int layer, int half) override;
  void Narrow(const Step& step, std::span<const int> kept) override;
  void Attend(const Step& step, int layer, int half) override;
  void Experts(const Step& step, int layer, Routing* routing) override;
  void DenseMlp(const Step& step, int layer, int half) override;
  void JoinShortcut(const Step& step, int layer) override;
  void Logits(const Step& step, FinalNorm norm, float* logits) override;

 private:
  struct RowRange {
    int first;
    int count;
  };

  // Values of row-wise operations below which threads cost more than they bring.
  static constexpr int64_t kSerialValues = 16 << 10;

  static size_t Area(int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }

  static MatmulJob Job(const MatmulWeights& w, const float* x, const Step& step, float* y) {
    return {w, nullptr, x, w.in, nullptr, static_cast<int>(step.rows.size()), y, w.out};
  }

  void RunOne(const MatmulJob& job) { matmul_.Run({&job, 1}); }

  // body(row) or body(row, thread), on all threads where that pays.
  template <typename Body>
  void ForRows(const Step& step, int values_per_row, Body&& body) {
    const auto rows = static_cast<int>(step.rows.size());
    const auto run = [&](int row, int thread) {
      if constexpr (std::is_invocable_v<Body, int, int>) {
        body(row, thread);
      } else {
        body(row);
      }
    };
    if (int64_t{rows} * values_per_row <= kSerialValues) {
      for (int row = 0; row < rows; ++row) run(row, 0);
      return;
    }
    const int bands = std::min(rows, 4 * pool_->threads());
    pool_->Run(bands, [&](int band, int thread) {
      const auto border = [&](int b) { return static_cast<int>(int64_t{b} * rows / bands); };
      for (int row = border(band); row < border(band + 1); ++row) run(row, thread);
    });
  }

  // What is left to whoever reads x next to add to it: y of the last attention or MLP and, after a layer, the shortcut's m.
  enum class Pending { kNothing, kBranch, kBranchAndShortcut };
  // x += what is pending, and n = RMS(x; weight) unless weight is null.
  void Settle(const Step& step, const float* weight);

  // y = the tokens' embeddings; then all that depends on the rows' positions.
  void EmbedInto(std::vector<float>& y, const CpuTable& table, const Step& step);
  const float* NormBeforeHead(FinalNorm which) const;

  // Attention.
  // What all attentions of the step share: who sees what in which form, the rows' rotary angles.
  void PlanAttention(const Step& step);
  void Rotate(const float* from, int row, float* to) const;
  void Absorb(const CpuAttention& a, const uint8_t* pages);

  // Experts.
  // Sorts the choices by expert: assigned_ lists rows, place_ says where each choice's output will be (-1: identity).
  void Assign(size_t rows);
  // m = sum of the chosen experts' weighted outputs, and the identity experts' weight times n, in order of choice.
  void Combine(int row, int thread);

  const ModelConfig c_;
  const float latent_eps_;
  const bool deterministic_;  // every operation has one form, whatever the rows of the step
  const CodePath path_;
  ThreadPool* const pool_;
  const Rotary rotary_;
  const int query_width_;  // kv_row, filled up
  CpuWeights weights_;
  const WeightChoice choice_;
  MatmulList matmul_;
  AttentionList attention_;
  ExpandedList expanded_;
  std::vector<AttentionRows> to_absorb_, to_expand_;
  std::vector<RowRange> absorbed_rows_;
  std::vector<uint8_t> absorbed_;  // per row

  Pending pending_ = Pending::kNothing;
  // Activations, [rows, width].
  std::vector<float> x_, n_, m_, y_, q_a_, q_, kv_, queries_, context_, heads_out_, wide_, expert_out_, probabilities_, cosine_, sine_;
  std::vector<float> joined_;          // of a draft: [rows, 2 * hidden]
  std::vector<int32_t> chosen_;        // [rows, topk]
  std::vector<int32_t> place_;         // [rows, topk]
  std::vector<int32_t> assigned_;      // rows, by expert
  std::vector<int32_t> expert_first_;  // [experts + 1] into assigned_
  // Of one combination, per thread: [threads, topk + 1].
  std::vector<const float*> sources_;
  std::vector<float> source_weights_;
  std::vector<MatmulJob> jobs_;
};

}  // namespace margay
