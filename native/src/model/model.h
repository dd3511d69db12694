// The LongCat forward pass over paged latent KV (spec/longcat-flash.md, sections 2 to 4).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/exchange.h"
#include "core/kv_memory.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "model/layer_schedule.h"

namespace margay {

enum class BackendKind { kRef, kCpu };

// What linear layers compute with: the precision of the checkpoint, or int8 made of it when it is loaded. int8 loses
// precision; router, norms, embeddings, head and the absorbed kv_b stay as they are.
enum class WeightChoice { kCheckpoint, kInt8 };

struct ModelOptions {
  std::string folder;
  BackendKind backend = BackendKind::kCpu;
  int threads = 0;             // 0: one per usable core
  bool pin_threads = false;    // each on a core of its own
  std::string packed_folder;   // empty: pack privately
  float latent_norm_eps = -1;  // < 0: the checkpoint's rms_norm_eps
  WeightChoice weights = WeightChoice::kCheckpoint;
  int max_rows = 512;          // most rows of one Forward
  std::string isa;             // cpu code path, one of CpuIsas(); empty: the best one
  bool deterministic = false;  // a request's logits are bit-equal whatever the batch, the cut into steps and the threads
  bool draft = false;          // with the checkpoint's draft layer, where it has one
};

// Code paths of the cpu backend that this machine can run, the best one last.
std::vector<std::string> CpuIsas();

struct ModelFacts {
  std::string model_hash;  // hex digest of config, tensors, latent_norm_eps, int8 weights and, if deterministic, code path: equal where rows fit
  int vocab_size = 0;
  int context_length = 0;
  int attentions = 0;  // the draft layer's included, which is the last
  bool drafts = false;
  KvLayout kv;
  // What a group of ranks with this model has to agree on: the rest of a GroupSpec.
  int layers = 0;
  int hidden = 0;
  int experts = 0;  // real ones
  int topk = 0;
  int max_rows = 0;
  PayloadFormat payload = PayloadFormat::kBf16;
  CombineMode combine = CombineMode::kSummed;
  std::vector<int32_t> eos_tokens;  // config.json and generation_config.json eos_token_id (number or list)
  std::string isa;                  // code path chosen, "ref" for the ref backend
  int threads = 0;
  uint64_t weight_bytes = 0;
  bool packed_hit = false;
  double kernels_ms = 0;  // of the load: until kernels were chosen, and timed where that chooses
  double weights_ms = 0;  // then until the weights were packed, or mapped
  std::vector<std::string> warnings;
};

// The rows of one sequence in one step: tokens at positions position .. position + count - 1.
struct SequenceRows {
  const int32_t* tokens = nullptr;       // [count]
  int count = 0;
  int position = 0;                      // rows before it are already in the KV pool
  const int32_t* block_table = nullptr;  // physical block of logical block i; covers position + count tokens
  int logits_rows = 0;                   // logits wanted for the last this-many rows: 0, 1, or more in tests
};

// Rows of the draft layer. Row i stands at the position of a row that was computed, and its token is the one that
// follows there; the logits are of the token after that.
struct DraftRows {
  SequenceRows rows;
  int source = 0;  // row whose hidden state the first one takes, the others take those that follow: counted over all rows of
                   // the last Forward, or over those of the last Draft that had logits
};

// Called on the engine thread when the KV rows of one attention are written for all sequences of the step, before the
// next attention starts: pages may be announced from here.
using AttentionDone = std::function<void(int attention)>;

// Choices of the rows that this model routed, over all layers.
struct RoutingCounters {
  std::vector<uint64_t> loads;  // of each real expert
  uint64_t rows = 0;
  uint64_t real_choices = 0;
  uint64_t zero_choices = 0;
};

class Model {
 public:
  static Result<std::unique_ptr<Model>> Load(const ModelOptions& options);
  virtual ~Model() = default;
  virtual const ModelFacts& facts() const = 0;
  // The threads that compute, free between the calls below; null: there are none.
  virtual ThreadPool* pool() { return nullptr; }
  // From the next Forward on this model's experts serve a group, and every Forward is a step of it, also one without rows,
  // as every other member runs at the same time; null: alone again. The exchange stays its owner's. A Forward that loses
  // the group ends with kGroupLost: of its rows nothing counts. Not during a call.
  virtual Status SetExchange(ExpertExchange* exchange) {
    return exchange == nullptr ? Status::Ok() : Status(Code::kBadState, "the model has no experts to share");
  }
  // Brings the weights of these experts into memory, of all layers. Any thread, also during a call.
  virtual void TouchExperts(std::span<const int>) const {}
  // Any thread.
  virtual RoutingCounters routing_counters() const { return {}; }
  // Runs one step. `logits` holds [sum of logits_rows, vocab_size] floats, sequences in order. The KV of a row is
  // written before it is read; the sum of counts is at most max_rows. One thread at a time.
  virtual Status Forward(std::span<const SequenceRows> sequences, const KvMemory& kv, const AttentionDone& done,
                         float* logits) = 0;
  // Runs the draft layer over the hidden states of the last Forward or Draft. Its KV rows are attention attentions - 1:
  // those at positions before rows.position are there already. Logits as in Forward; a row without them ends with its KV.
  // Fails unless facts().drafts.
  virtual Status Draft(std::span<const DraftRows>, const KvMemory&, const AttentionDone&, float*) {
    return Status(Code::kBadState, "the model has no draft layer");
  }
  // Tests only: overrides the router's choice (spec 4.1) by a recorded one, or records it.
  // ids: [layers][rows][topk] in order of processing; nullptr switches off.
  virtual void ForceRouting(const std::vector<int32_t>* forced, std::vector<int32_t>* recorded) = 0;
  // Tests only: the stages of every layer run in this order, which keeps to the waits of layer_schedule.h; nullptr: in the
  // schedule's own.
  virtual void ForceOrder(const std::vector<Stage>*) {}
};

}  // namespace margay
