// The model on vector units: packed weights, fp32 activations, bf16 KV, absorbed attention.
//
// The parts of a step have a file each: cpu_attention.cc, cpu_experts.cc, cpu_mlp.cc, cpu_draft.cc; the rest is in cpu_backend.cc.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "comm/row_format.h"
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
  std::span<const std::byte> ExpertWeights(int layer, int expert) const override;
  std::string PackedLayout() const override { return choice_ == WeightChoice::kInt8 ? "cpu-panel16-3 int8" : "cpu-panel16-3"; }
  std::string Isa() const override { return path_.name; }
  KvType kv_type() const override { return KvType::kBf16; }
  PayloadFormat payload() const override { return PayloadFormat::kBf16; }
  CombineMode combine() const override { return deterministic_ ? CombineMode::kPerExpert : CombineMode::kSummed; }
  void MakeRoom(int ranks) override;

  void Embed(const Step& step) override;
  void EmbedDraft(const Step& step, std::span<const int> sources, FinalNorm made_by) override;
  void WriteKv(const Step& step, int layer, int half) override;
  void Narrow(const Step& step, std::span<const int> kept) override;
  void Attend(const Step& step, int layer, int half, ExpertExchange* exchange) override;
  void Route(const Step& step, int layer, Routing* routing) override;
  DispatchRows Routed(const Step& step) const override;
  void Experts(const Step& step, int layer) override;
  void ServeExperts(std::span<const ReceivedRow> rows, int layer, ExpertExchange* exchange) override;
  void DenseMlp(const Step& step, int layer, int half) override;
  void JoinShortcut(const Step& step, const ExpertExchange* exchange) override;
  void Logits(const Step& step, FinalNorm norm, float* logits) override;

 private:
  using Untouched = std::unique_ptr<float[]>;  // no page of it is there before it is used

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
    ForRows(static_cast<int>(step.rows.size()), values_per_row, body);
  }
  template <typename Body>
  void ForRows(int rows, int values_per_row, Body&& body) {
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
  // x += what is pending, and n = RMS(x; weight) unless weight is null. Rows of n go to `exchange` unless it is null.
  void Settle(const Step& step, const float* weight, float* n, ExpertExchange* exchange = nullptr);
  // n of the post-attention norm.
  float* NormOf(int half) { return half == 0 ? branch_.get() : n_.data(); }

  // y = the tokens' embeddings; then all that depends on the rows' positions.
  void EmbedInto(std::vector<float>& y, const CpuTable& table, const Step& step);
  const float* NormBeforeHead(FinalNorm which) const;

  // Attention.
  // What all attentions of the step share: who sees what in which form, the rows' rotary angles.
  void PlanAttention(const Step& step);
  void Rotate(const float* from, int row, float* to) const;
  void Absorb(const CpuAttention& a, const uint8_t* pages);

  // Experts.
  // Sorts choices by expert, rows as before: assigned_ lists rows, place_ says where each choice's output will be (-1:
  // not made here). expert_of(choice) is none of the real ones for such.
  template <typename ExpertOf, typename RowOf>
  void Assign(size_t choices, const ExpertOf& expert_of, const RowOf& row_of);
  // Outputs of all that is assigned, from rows of branch_.
  void RunExperts(const CpuLayer& layer);
  // m = sum of the chosen experts' weighted outputs, and the identity experts' weight times n, in order of choice.
  void Combine(int row, int thread);
  // The same with the outputs rounded as they would travel and added to the identity term one by one, by rising expert:
  // what an exchange does with those that come back.
  void CombineInOrder(int row, int thread);
  // m = identity experts' weight times n.
  void PutIdentity(int row);
  // Its values are n itself; else as they travelled, or as they would have.
  bool ReadsAsMade(const ReceivedRow& row) const { return row.payload == nullptr && !deterministic_; }
  // What this rank's experts made of a row of the group.
  void TellResults(const ReceivedRow& row, int number, int thread, ExpertExchange* exchange);

  const ModelConfig c_;
  const RowFormat row_format_;  // of a deterministic engine's rows, also where they stay here
  const float latent_eps_;
  const int max_rows_;
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
  std::vector<float> x_, n_, m_, y_, q_a_, q_, kv_, queries_, context_, heads_out_, wide_, probabilities_, cosine_, sine_;
  // n of a layer's first half, which outlives that of the second: [rows of a step], then what experts read and is not n
  // itself: [rows of the group], as they travelled.
  Untouched branch_;
  // Of the rows that experts of this rank have, by expert: activations of their MLPs, outputs.
  Untouched expert_wide_, expert_out_;
  std::vector<float> joined_;          // of a draft: [rows, 2 * hidden]
  std::vector<int32_t> chosen_;        // [rows, topk], with
  std::vector<float> chosen_weights_;  // their weights
  std::vector<int32_t> place_;         // [rows, topk]
  std::vector<int32_t> assigned_;      // rows of branch_, by expert
  std::vector<int32_t> first_choice_;  // of each row of the group, in place_
  std::vector<int32_t> choice_rows_, choice_experts_;
  std::vector<int32_t> expert_first_;  // [experts + 1] into assigned_
  // Of one combination, per thread: [threads, topk + 1].
  std::vector<const float*> sources_;
  std::vector<float> source_weights_;
  std::vector<float> sums_;  // per thread: [threads, hidden]
  std::vector<MatmulJob> jobs_;
};

}  // namespace margay
