// What a backend computes: the operations of one decoder step, in the order model.cc calls them. The order itself (the
// two halves of a layer, the shortcut that joins at its end) is written once, there.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/exchange.h"
#include "core/kv_memory.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "model/model.h"
#include "model/model_config.h"
#include "model/model_tensors.h"
#include "model/routing.h"
#include "weights/checkpoint.h"
#include "weights/packed_weights.h"

namespace margay {

// One token of one sequence.
struct StepRow {
  int32_t token = 0;
  int position = 0;
  const int32_t* block_table = nullptr;
};

// The rows of all sequences, one after the other. `wanted` lists the rows whose logits are asked for.
struct Step {
  std::span<const SequenceRows> sequences;
  std::vector<StepRow> rows;
  std::vector<int> wanted;
  KvMemory kv;

  std::byte* KvRow(int attention, const StepRow& row) const { return KvRow(attention, row.block_table, row.position); }
  std::byte* KvRow(int attention, const int32_t* block_table, int position) const {
    return kv.page(attention, block_table[position / kBlockTokens]) +
           static_cast<size_t>(position % kBlockTokens) * kv.layout.row_bytes();
  }
};

// The last norm before the head, by the pass that made the hidden states.
enum class FinalNorm : uint8_t { kTarget, kDraft };

class Backend {
 public:
  virtual ~Backend() = default;

  // Lays out the packed weights. Pointers into `tensors` and `checkpoint` are used until Bind.
  virtual void Plan(const Checkpoint& checkpoint, const ModelTensors& tensors, PackPlan* plan) = 0;
  // From here on weights lie at `base`.
  virtual void Bind(const std::byte* base) = 0;
  // The range that holds all of an expert's.
  virtual std::span<const std::byte> ExpertWeights(int layer, int expert) const = 0;
  // Names the packed layout: part of the packed file's key.
  virtual std::string PackedLayout() const = 0;
  virtual std::string Isa() const = 0;
  virtual KvType kv_type() const = 0;
  // How its rows travel to experts of other ranks, and what those made of them back.
  virtual PayloadFormat payload() const = 0;
  virtual CombineMode combine() const = 0;
  // Makes room for the rows of so many ranks; not during a step.
  virtual void MakeRoom(int ranks) = 0;

  // x = embedding of the tokens.
  virtual void Embed(const Step& step) = 0;
  // x = join of [RMS(embedding of the tokens), RMS(RMS(h; final norm))]: the input of the draft layer (spec 7.1), which
  // is layer number `layers` and has one half. h of row i is x of row sources[i] as the last pass left it.
  virtual void EmbedDraft(const Step& step, std::span<const int> sources, FinalNorm made_by) = 0;
  // Queries and KV rows of RMS(x; input_layernorm). The KV rows are in the pool afterwards.
  virtual void WriteKv(const Step& step, int layer, int half) = 0;
  // Between WriteKv and Attend: the step has fewer rows than before, row i was row kept[i] >= i.
  virtual void Narrow(const Step& step, std::span<const int> kept) = 0;
  // x += attention; n = RMS(x; post_attention_layernorm), one for each half. Rows of n go to `exchange` if there is one.
  virtual void Attend(const Step& step, int layer, int half, ExpertExchange* exchange) = 0;
  // Experts and weights of each row's n of the first half, which stays as it is until JoinShortcut has read it.
  virtual void Route(const Step& step, int layer, Routing* routing) = 0;
  // What Route found, as the exchange takes it. Valid until JoinShortcut.
  virtual DispatchRows Routed(const Step& step) const = 0;
  // Outputs of the chosen experts: of a rank alone.
  virtual void Experts(const Step& step, int layer) = 0;
  // Outputs of this rank's experts for the rows of the group, told to the exchange.
  virtual void ServeExperts(std::span<const ReceivedRow> rows, int layer, ExpertExchange* exchange) = 0;
  // x += mlp(n).
  virtual void DenseMlp(const Step& step, int layer, int half) = 0;
  // x += identity term and weighted outputs of the experts, which the exchange has where there is one.
  virtual void JoinShortcut(const Step& step, const ExpertExchange* exchange) = 0;
  // Ends the step: x is whole afterwards. Logits of the wanted rows, if there are any.
  virtual void Logits(const Step& step, FinalNorm norm, float* logits) = 0;
};

struct BackendOptions {
  float latent_eps = 0;
  int max_rows = 0;
  std::string isa;             // cpu: one of CpuIsas(), or empty for the best
  WeightChoice weights = WeightChoice::kCheckpoint;
  bool deterministic = false;  // as in ModelOptions: no form of an operation is chosen by row count, threads or timing
};

std::unique_ptr<Backend> MakeRefBackend(const ModelConfig& config, const BackendOptions& options, ThreadPool* pool);
Result<std::unique_ptr<Backend>> MakeCpuBackend(const ModelConfig& config, const BackendOptions& options, ThreadPool* pool);

}  // namespace margay
