// One engine: one model, one KV pool, one thread that steps, one that keeps deadlines. The semantics of every call are
// those of `Engine` in native/binding/native.ts.
//
//   Open -> running -> (failed) -> stopping -> closed
//
// Owns the model, the pool, the sender or receiver, the sequences, the batch and the queue of plans, and the seat in a
// group of an engine that is one of several ranks (engine/group_seat.h).
// E1 at most two plans are queued, the running one included; they run in order, one a step. A step without a plan
//    repeats the batch, as long as a sequence in it has reserved rows left and its owner hears of the results
// E2 a sequence's blocks and slot are not used again while its rows are in the running step or its pages are being sent
// E3 tokens and table of a sequence in the running step are changed by the engine thread alone; the table may get longer
// E4 a call returns without waiting for a step; the mutex is never held while the model computes
// E5 transport threads only leave outcomes for the keeper: the transport may be called under the mutex
// E6 slots and blocks are taken by one thread, that of the calls, which may copy blocks without the mutex: nothing else
//    makes fewer of them available
#pragma once

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/status.h"
#include "engine/draft_policy.h"
#include "engine/group_seat.h"
#include "engine/keeper.h"
#include "engine/outbox.h"
#include "engine/sequence.h"
#include "engine/sequence_table.h"
#include "engine/speculation.h"
#include "kv/kv_pool.h"
#include "model/model.h"
#include "transport/kv_transfer.h"

namespace margay {

inline constexpr int kPlanEntryWidth = 4;  // PLAN_ENTRY_WIDTH
// Steps that nobody has heard of, beyond which the batch is not repeated.
inline constexpr int kMostUntoldSteps = 1024;
inline constexpr int kMaskBits = 32;

struct EngineOptions {
  ModelOptions model;  // max_rows: most rows of one step; draft: set by Open
  int speculation = 0;  // most drafts per sequence and step, at most kMostDrafts; 0: no draft layer
  bool draft_always = false;  // whether it pays or not
  int slots = 0;
  int kv_blocks = 0;      // 0: as many as kv_bytes holds
  uint64_t kv_bytes = 0;
  KvTierOptions kv_tier;
  bool decode = false;    // the role
  std::string kv_host;
  int kv_port = 0;
  bool allow_shared_memory = true;
  TlsFiles kv_tls;        // of KV over TCP; none: it is not encrypted
  std::optional<GroupOptions> group;  // none: its worker's only rank
};

struct ExportTarget {
  std::string host;
  int port = 0;
  std::string host_key;
  int64_t epoch = 0;
  SequenceRef remote;
  int cached_tokens = 0;
  int64_t deadline_ms = 0;
};

struct OpenedSequence {
  SequenceRef ref;
  int cached_tokens = 0;
};

struct EngineStats {
  std::array<int, kBlockStates> blocks{};
  int blocks_available = 0;
  CacheCounters pool;
  CacheCounters second_tier;
  int sequences = 0;
  uint64_t steps = 0;
  double compute_ms = 0;
  uint64_t prefill_tokens = 0;
  uint64_t decode_tokens = 0;
  uint64_t prefix_cached_tokens = 0;
  uint64_t drafts_proposed = 0;  // by the draft layer
  uint64_t drafts_verified = 0;  // had a row of the target
  uint64_t drafts_accepted = 0;  // became tokens that cost no step of their own
  TransferCounters sent;
  TransferCounters received;
};

// Since the engine was opened, over all groups it was in.
struct ExchangeStats {
  RoutingCounters routing;
  ExchangeCounters exchange;
  uint64_t stale_messages = 0;
};

class Engine {
 public:
  // Loads the model; seconds. `notify`: the outbox has filled; called from any thread, must not call back.
  static Result<std::unique_ptr<Engine>> Open(const EngineOptions& options, std::function<void()> notify);
  // The same over a model that is there: tests bring their own.
  static Result<std::unique_ptr<Engine>> OpenWith(std::unique_ptr<Model> model, const EngineOptions& options,
                                                  std::function<void()> notify);
  ~Engine();

  const ModelFacts& facts() const { return facts_; }
  const EngineOptions& options() const { return options_; }
  int kv_blocks() const { return kv_blocks_; }
  double pool_ms() const { return pool_ms_; }  // what it took to make the pool and touch its memory
  int kv_port() const { return kv_port_; }

  Status SetEpoch(int64_t epoch);
  Result<OpenedSequence> OpenSequence(SequenceSpec spec);
  Status ExportTo(SequenceRef ref, const ExportTarget& target);
  Result<int> Attach(SequenceRef ref, std::optional<int32_t> first_token);
  // Bits of tokens, kMaskBits to a word; empty: the mask is to come; none: every token may be chosen, at any time.
  Status SetMask(SequenceRef ref, std::optional<std::vector<uint32_t>> mask);
  // True when its rows are in the running step, so that slot and blocks are held until that has ended.
  Result<bool> CloseSequence(SequenceRef ref, bool keep);
  Result<int64_t> Submit(std::span<const int32_t> plan);
  // Of one of several ranks. What takes its time ends with a CallEnded among the messages.
  Result<CallId> JoinGroup(const GroupOrder& order);
  Result<CallId> LeaveGroup(bool at_once);
  Result<CallId> PrepareExperts(uint64_t version, ExpertOwners owners);
  Status SwitchExperts(uint64_t version);
  int exchange_port() const;
  ExchangeStats exchange_stats();
  // Everything told since the last time, in order.
  std::vector<EngineMessage> TakeMessages();
  Result<EngineStats> Stats();
  Result<std::vector<uint8_t>> PrefixHashes();
  // Empty, or the first broken invariant in words.
  Result<std::string> CheckInvariants();

  // Refuses everything from now on. At once.
  void Stop();
  // Stop, then joins all threads and frees model and pool; waits for the running step. Once.
  void Close();

 private:
  struct PlanEntry {
    SequenceRef ref;
    int32_t rows = 0;
    int32_t reserve = 0;
    bool joins() const { return reserve > 0; }
    bool leaves() const { return rows == 0 && reserve == 0; }
  };
  struct Plan {
    int64_t number = 0;
    std::vector<PlanEntry> entries;
  };
  // What the running step does for one sequence; null sequence: a planned one that is skipped.
  struct Job {
    SequenceRef ref;
    Sequence* sequence = nullptr;
    int rows = 0;       // of known tokens, then of drafts
    int drafts = 0;
    int first_row = 0;  // in the step
    size_t input = 0;   // in rows_
    int capacity = 0;   // as the step began
    bool planned = false;   // by an entry's rows, not by the batch
    bool batched = false;   // will decode in the next step
    bool produces = false;
    bool exporting = false;
    bool masked = false;
    bool ends = false;  // its last token is the last of all
    size_t first_sampled = 0;  // in sampled_
    int sampled = 0;
    int drafts_wanted = 0;  // of its next step, at most
    int proposed = 0;

    // Rows that became part of the sequence: drafts behind the last token did not.
    int kept() const { return rows - drafts + std::max(sampled - 1, 0); }
  };
  // A sequence whose draft grows: its row among those of the draft layer that had logits, and the drafts it may still have.
  struct Drafting {
    Job* job = nullptr;
    int row = 0;
    int left = 0;
  };

  Engine(const EngineOptions& options, std::unique_ptr<Model> model, std::unique_ptr<KvPool> pool,
         std::function<void()> notify);
  Status OpenTransport();

  // The calls (engine.cc); the mutex is held.
  Status CheckSpec(const SequenceSpec& spec) const;
  Status CheckUsable() const;
  Result<Sequence*> Find(SequenceRef ref) const;
  void End(Sequence* sequence, bool keep);
  void ReleaseIfIdle(Sequence* sequence);
  void EmitCacheChanges();
  // Tells the sender of all rows that settled steps have written.
  void AnnounceWritten(const Sequence& sequence);

  // Plans and the batch (engine_plan.cc); the mutex is held.
  static Plan ReadPlan(std::span<const int32_t> values);
  Status CheckPlan(const Plan& plan);
  Status CheckEntry(const PlanEntry& entry, const Sequence& sequence) const;
  // Lets go of the mutex while blocks are copied to the second tier.
  Status Reserve(const Plan& plan, std::unique_lock<std::mutex>* lock);
  void Queue(Plan plan);
  void SetWillRun(Sequence* sequence, bool will_run);
  void Join(Sequence* sequence);
  void Leave(Sequence* sequence);
  bool HasStep() const;

  // The engine thread (engine_step.cc).
  void StepLoop();
  void PreparePlan(const Plan& plan);
  void PrepareBatch();
  void AddJob(SequenceRef ref, Sequence* sequence, int rows, int drafts, bool planned);
  void TakeMask(Sequence* sequence);
  // serves: also without rows, for the other ranks.
  Status Compute(bool serves);
  // Within a step in which nothing but the batch runs: what its parts take is measured.
  bool OnlyBatch() const;
  void TellFirstTokens(double ms);
  void SampleTokens();
  void SampleJob(Job* job, size_t thread);
  // body(item, thread) for each item, on the model's threads where `rows` of logits are worth it.
  template <typename Body>
  void ForEach(size_t items, size_t rows, Body&& body) {
    constexpr size_t kSerialLogits = 16 << 10;
    ThreadPool* threads = model_->pool();
    if (threads != nullptr && rows * static_cast<size_t>(facts_.vocab_size) > kSerialLogits) {
      threads->Run(static_cast<int>(items), [&](int item, int thread) { body(static_cast<size_t>(item), static_cast<size_t>(thread)); });
    } else {
      for (size_t item = 0; item < items; ++item) body(item, size_t{0});
    }
  }
  void Tell(StepReport report);
  void Settle(StepReport* report);
  void SettleJob(Job* job, StepReport* report);
  void TakeTokens(const Job& job, StepReport* report);

  // One rank of several (engine_group.cc).
  Status OpenGroup();
  Status CheckSeat() const;
  void Join(const GroupSpec& spec, CallId call);
  bool HasGroupStep() const;
  bool MustServe() const;
  // The running step, if there is one, fails with its group.
  void LoseStep(bool planned, std::unique_lock<std::mutex>* lock);
  void GiveUp(const Job& job);
  // Tells of the end, and `settle` what came of the step; lets go of the mutex for the exchange to end.
  void EndGroup(std::unique_lock<std::mutex>* lock, const std::function<void()>& settle);

  // The draft layer after the target, on the same thread (engine_draft.cc).
  Status RunDraftLayer();
  int DraftsWanted(const Job& job) const;
  void ChooseDrafting();
  void AddDraftRows(Job* job);
  void ProposeNext(int step_rows);
  std::span<const int32_t> HistoryOf(const Job& job, std::span<const int32_t> drafts, size_t thread);

  // The keeper's thread (engine_keeper.cc).
  void TakeOutcome(const TransferOutcome& outcome);
  int64_t LapseAndFindNextDeadline(int64_t now_ms);

  const EngineOptions options_;
  Outbox outbox_;
  std::unique_ptr<Model> model_;
  const ModelFacts facts_;
  std::unique_ptr<KvPool> pool_;
  const int kv_blocks_;
  double pool_ms_ = 0;
  int kv_port_ = 0;
  std::unique_ptr<KvReceiver> receiver_;  // decode
  std::unique_ptr<KvSender> sender_;      // prefill

  std::mutex mutex_;
  std::condition_variable work_;
  bool stopping_ = false;
  bool failed_ = false;
  SequenceTable sequences_;
  std::deque<Plan> queue_;  // front: the running one, when the running step has one
  int64_t next_plan_ = 0;
  std::vector<Sequence*> batch_;  // in the order in which they joined
  int will_run_ = 0;              // sequences in the batch once all queued plans have begun
  EngineStats counters_;
  std::unique_ptr<GroupSeat> seat_;  // null: its worker's only rank
  CallId next_call_ = 0;
  struct Growth {
    Sequence* sequence = nullptr;
    int capacity = 0;
  };
  std::vector<Growth> growing_;  // of the plan that is checked
  std::vector<uint64_t> seen_;  // per slot: stamp of the plan check that met it last
  uint64_t seen_stamp_ = 0;

  // The engine thread's own; filled by Prepare.
  std::vector<Job> jobs_;
  std::vector<SequenceRows> rows_;
  int step_rows_ = 0;
  std::vector<int32_t> verified_;  // per job with drafts: its last token, then the drafts
  std::vector<Sampled> sampled_;
  std::vector<DraftRows> draft_rows_;
  std::vector<int32_t> following_;  // tokens of draft_rows_
  std::vector<Drafting> drafting_;
  std::vector<Sampler> samplers_;                // per thread, as are
  std::vector<std::vector<int32_t>> histories_;  // these
  std::vector<float> logits_;  // [rows of a step that may give a token, vocab]
  AttentionDone attention_done_;
  DraftPolicy policy_;
  std::vector<Job*> candidates_;  // may draft, the most promising first
  std::vector<float> yields_;     // theirs
  double held_ms_ = 0;  // of the steps that are told with a later one

  std::unique_ptr<Keeper> keeper_;
  std::thread thread_;
};

// Milliseconds since the Unix epoch.
double EpochMs();

}  // namespace margay
