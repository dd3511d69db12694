#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "kernels/code_path.h"

namespace margay {
namespace {

// Deadlines and lengths come from outside: sums of two of them must not overflow.
constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();
constexpr int kMostSlots = 1 << 16;

std::string Number(int64_t value) { return std::to_string(value); }

bool AllWithin(std::span<const int32_t> ids, int vocab_size) {
  return std::all_of(ids.begin(), ids.end(), [&](int32_t id) { return id >= 0 && id < vocab_size; });
}

Result<int> CountBlocks(const EngineOptions& options, const KvLayout& layout) {
  const uint64_t blocks = options.kv_blocks > 0 ? static_cast<uint64_t>(options.kv_blocks)
                                                : options.kv_bytes / std::max<uint64_t>(layout.block_bytes(), 1);
  if (blocks < 1) {
    return Status(Code::kBadArgument, "kvBytes must hold at least one block of " +
                                          Number(static_cast<int64_t>(layout.block_bytes())) + " bytes");
  }
  if (blocks > static_cast<uint64_t>(kMostTokens / kBlockTokens)) {
    return Status(Code::kBadArgument, "more than " + Number(kMostTokens / kBlockTokens) + " KV blocks");
  }
  return static_cast<int>(blocks);
}

}  // namespace

double EpochMs() {
  using std::chrono::system_clock;
  return std::chrono::duration<double, std::milli>(system_clock::now().time_since_epoch()).count();
}

Result<std::unique_ptr<Engine>> Engine::Open(const EngineOptions& options, std::function<void()> notify) {
  if (options.slots < 1 || options.slots > kMostSlots) {
    return Status(Code::kBadArgument, "slots must be from 1 to " + Number(kMostSlots));
  }
  if (options.model.max_rows < 1) return Status(Code::kBadArgument, "maxStepTokens must be at least 1");
  if (options.speculation < 0 || options.speculation > kMostDrafts) {
    return Status(Code::kBadArgument, "speculation must be from 0 to " + Number(kMostDrafts));
  }
  ModelOptions wanted = options.model;
  wanted.draft = options.speculation > 0;
  Result<std::unique_ptr<Model>> model = Model::Load(wanted);
  if (!model.ok()) return model.status();
  return OpenWith(std::move(*model), options, std::move(notify));
}

Result<std::unique_ptr<Engine>> Engine::OpenWith(std::unique_ptr<Model> model, const EngineOptions& options,
                                                 std::function<void()> notify) {
  const ModelFacts& facts = model->facts();
  Result<int> blocks = CountBlocks(options, facts.kv);
  if (!blocks.ok()) return blocks.status();
  const auto began = std::chrono::steady_clock::now();
  Result<std::unique_ptr<KvPool>> pool = KvPool::Create(facts.kv, *blocks, facts.model_hash, options.kv_tier);
  if (!pool.ok()) return pool.status();
  const double pool_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
  std::unique_ptr<Engine> engine(new Engine(options, std::move(model), std::move(*pool), std::move(notify)));
  engine->pool_ms_ = pool_ms;
  if (Status opened = engine->OpenTransport(); !opened.ok()) return opened;
  if (Status opened = engine->OpenGroup(); !opened.ok()) return opened;
  engine->thread_ = std::thread([raw = engine.get()] { raw->StepLoop(); });
  return engine;
}

Engine::Engine(const EngineOptions& options, std::unique_ptr<Model> model, std::unique_ptr<KvPool> pool,
               std::function<void()> notify)
    : options_(options),
      outbox_(std::move(notify)),
      model_(std::move(model)),
      facts_(model_->facts()),
      pool_(std::move(pool)),
      kv_blocks_(pool_->memory().blocks),
      sequences_(options.slots),
      seen_(static_cast<size_t>(options.slots), 0),
      policy_(options.model.max_rows, options.speculation) {
  const auto most_rows = static_cast<size_t>(options_.model.max_rows);
  const auto slots = static_cast<size_t>(options_.slots);
  const auto drafts = static_cast<size_t>(facts_.drafts ? options_.speculation : 0);
  logits_.resize(std::min(slots * (1 + drafts), most_rows) * static_cast<size_t>(facts_.vocab_size));
  jobs_.reserve(slots);
  candidates_.reserve(slots);
  yields_.reserve(slots);
  rows_.reserve(std::min(slots, most_rows));
  batch_.reserve(std::min(slots, most_rows));
  verified_.reserve(most_rows);   // pointed into, as is
  following_.reserve(most_rows);  // this
  sampled_.reserve(most_rows);
  const int threads = model_->pool() == nullptr ? 1 : model_->pool()->threads();
  samplers_.assign(static_cast<size_t>(threads), Sampler(UsableCodePath(facts_.isa).sample));
  histories_.resize(samplers_.size());
  attention_done_ = [this](int attention) {
    for (const Job& job : jobs_) {
      if (job.sequence == nullptr || !job.exporting) continue;
      sender_->Written(job.sequence->ref, attention, job.sequence->length + job.rows - job.drafts);
    }
  };
  keeper_ = std::make_unique<Keeper>([this](const TransferOutcome& outcome) { TakeOutcome(outcome); },
                                     [this](int64_t now_ms) { return LapseAndFindNextDeadline(now_ms); });
}

Status Engine::OpenTransport() {
  OnTransfer on_transfer = [this](const TransferOutcome& outcome) { keeper_->Leave(outcome); };
  if (!options_.decode) {
    Result<std::unique_ptr<KvSender>> sender = KvSender::Create(pool_.get(), facts_.model_hash, std::move(on_transfer), options_.kv_tls);
    if (!sender.ok()) return sender.status();
    sender_ = std::move(*sender);
    return Status::Ok();
  }
  Result<std::unique_ptr<KvReceiver>> receiver =
      KvReceiver::Create(pool_.get(), facts_.model_hash, options_.kv_host, options_.kv_port,
                         options_.allow_shared_memory, std::move(on_transfer), options_.kv_tls);
  if (!receiver.ok()) return receiver.status();
  receiver_ = std::move(*receiver);
  kv_port_ = receiver_->port();
  return Status::Ok();
}

Engine::~Engine() { Close(); }

void Engine::Stop() {
  std::shared_ptr<ExpertExchange> exchange;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    if (seat_ != nullptr) {
      exchange = seat_->exchange;
      seat_->endpoint->StopJoining();
    }
  }
  if (exchange != nullptr) exchange->Abort(exchange->self());
  work_.notify_all();
}

void Engine::Close() {
  Stop();
  if (thread_.joinable()) thread_.join();
  // The transport's threads use keeper and pool; the keeper touches neither once it sees `stopping_`.
  receiver_.reset();
  sender_.reset();
  keeper_.reset();
  seat_.reset();
  pool_.reset();
  model_.reset();
  // JavaScript may keep a closed engine for long.
  logits_ = {};
}

Status Engine::CheckUsable() const {
  if (stopping_) return Status(Code::kClosed, "the engine is closed");
  if (failed_) return Status(Code::kClosed, "the engine has failed");
  return Status::Ok();
}

Result<Sequence*> Engine::Find(SequenceRef ref) const {
  if (Status usable = CheckUsable(); !usable.ok()) return usable;
  Sequence* sequence = sequences_.Find(ref);
  if (sequence == nullptr) {
    return Status(Code::kStaleHandle,
                  "slot " + Number(ref.slot) + " has no sequence of generation " + Number(ref.generation));
  }
  return sequence;
}

Status Engine::SetEpoch(int64_t epoch) {
  std::lock_guard lock(mutex_);
  if (Status usable = CheckUsable(); !usable.ok()) return usable;
  if (receiver_ != nullptr) receiver_->SetEpoch(epoch);
  return Status::Ok();
}

Status Engine::CheckSpec(const SequenceSpec& spec) const {
  const auto known = static_cast<int64_t>(spec.tokens.size());
  if (known >= facts_.context_length) {
    return Status(Code::kTooLong,
                  Number(known) + " tokens leave no room in a context of " + Number(facts_.context_length));
  }
  if (spec.prompt_length < 1 || spec.prompt_length > known) {
    return Status(Code::kBadArgument, "promptLength must be within 1 and the number of tokens, " + Number(known));
  }
  if (known >= spec.prompt_length + std::min(spec.max_new_tokens, kMostTokens)) {
    return Status(Code::kBadArgument, "nothing is left of maxNewTokens");
  }
  if (spec.sampling.bias_ids.size() != spec.sampling.bias_values.size()) {
    return Status(Code::kBadArgument, "logitBiasIds and logitBiasValues differ in length");
  }
  if (!AllWithin(spec.tokens, facts_.vocab_size) || !AllWithin(spec.stop_tokens, facts_.vocab_size) ||
      !AllWithin(spec.sampling.bias_ids, facts_.vocab_size)) {
    return Status(Code::kBadArgument, "a token id is outside the vocabulary of " + Number(facts_.vocab_size));
  }
  if (spec.receive && receiver_ == nullptr) {
    return Status(Code::kBadState, "a prefill engine receives no pages");
  }
  return Status::Ok();
}

Result<OpenedSequence> Engine::OpenSequence(SequenceSpec spec) {
  std::unique_lock lock(mutex_);
  if (Status usable = CheckUsable(); !usable.ok()) return usable;
  if (Status good = CheckSpec(spec); !good.ok()) return good;
  const int slot = sequences_.FreeSlot();
  if (slot < 0) return Status(Code::kNoSlot, "all " + Number(sequences_.slots()) + " slots are taken");

  auto sequence = std::make_unique<Sequence>();
  sequence->ref = sequences_.Next(slot);
  sequence->given = static_cast<int>(spec.tokens.size());
  sequence->prompt_length = static_cast<int>(spec.prompt_length);
  sequence->token_limit = static_cast<int>(
      std::min<int64_t>(spec.prompt_length + std::min(spec.max_new_tokens, kMostTokens), facts_.context_length));
  sequence->capacity = static_cast<int>(std::clamp<int64_t>(spec.reserve, sequence->given, sequence->token_limit));
  sequence->min_tokens = static_cast<int>(
      std::min(spec.prompt_length + std::clamp<int64_t>(spec.min_new_tokens, 0, kMostTokens), kMostTokens));
  sequence->stop_tokens = std::move(spec.stop_tokens);
  sequence->stop_tokens.insert(sequence->stop_tokens.end(), facts_.eos_tokens.begin(), facts_.eos_tokens.end());
  sequence->sampling = std::move(spec.sampling);
  if (sequence->given < sequence->min_tokens) sequence->sampling.banned = sequence->stop_tokens;
  sequence->draft_yield = policy_.mean_yield();
  sequence->tokens = std::move(spec.tokens);
  sequence->tokens.reserve(static_cast<size_t>(sequence->token_limit));  // a step allocates nothing

  // Blocks may be copied to the second tier or back (E6): no step waits for that.
  lock.unlock();
  Result<OpenedKv> kv =
      pool_->Open(sequence->tokens, sequence->capacity, spec.receive ? KvUse::kReceive : KvUse::kCompute);
  lock.lock();
  EmitCacheChanges();  // also when it failed: blocks may have been evicted in vain
  if (!kv.ok()) return kv.status();
  if (Status usable = CheckUsable(); !usable.ok()) {
    pool_->Close(kv->id, true);
    return usable;
  }
  sequence->kv = kv->id;
  sequence->table = pool_->BlockTable(kv->id);
  sequence->cached_tokens = kv->cached_tokens;
  sequence->length = kv->cached_tokens;
  if (spec.receive) {
    const Status expected =
        receiver_->Expect(sequence->ref, kv->id, kv->cached_tokens, sequence->given, spec.deadline_ms);
    if (!expected.ok()) {
      pool_->Close(kv->id, true);
      return expected;
    }
    sequence->phase = Sequence::Phase::kWaiting;
    sequence->deadline_ms = spec.deadline_ms;
    keeper_->Expect(spec.deadline_ms);
  }
  counters_.prefix_cached_tokens += static_cast<uint64_t>(kv->cached_tokens);
  const OpenedSequence opened{sequence->ref, sequence->cached_tokens};
  sequences_.Put(std::move(sequence));
  return opened;
}

Status Engine::ExportTo(SequenceRef ref, const ExportTarget& target) {
  std::lock_guard lock(mutex_);
  Result<Sequence*> found = Find(ref);
  if (!found.ok()) return found.status();
  Sequence* sequence = *found;
  if (sender_ == nullptr) return Status(Code::kBadState, "a decode engine sends no pages");
  if (sequence->exporting) return Status(Code::kBadState, "slot " + Number(ref.slot) + " is being sent already");
  SendTarget to;
  to.host = target.host;
  to.port = target.port;
  to.shared_memory = options_.allow_shared_memory && target.host_key == HostKey();
  to.epoch = target.epoch;
  to.remote = target.remote;
  to.cached_tokens = target.cached_tokens;
  to.deadline_ms = target.deadline_ms;
  if (Status begun = sender_->Begin(ref, sequence->kv, sequence->given, to); !begun.ok()) return begun;
  sequence->exporting = true;
  AnnounceWritten(*sequence);
  return Status::Ok();
}

void Engine::AnnounceWritten(const Sequence& sequence) {
  for (int attention = 0; attention < facts_.attentions; ++attention) {
    sender_->Written(sequence.ref, attention, sequence.length);
  }
}

Result<int> Engine::Attach(SequenceRef ref, std::optional<int32_t> first_token) {
  std::lock_guard lock(mutex_);
  Result<Sequence*> found = Find(ref);
  if (!found.ok()) return found.status();
  Sequence* sequence = *found;
  if (sequence->phase == Sequence::Phase::kRunnable) {
    return Status(Code::kBadState, "slot " + Number(ref.slot) + " does not wait for pages");
  }
  if (first_token.has_value()) {
    if (*first_token < 0 || *first_token >= facts_.vocab_size) {
      return Status(Code::kBadArgument, "the first token is outside the vocabulary");
    }
    if (sequence->phase != Sequence::Phase::kReceived) {
      return Status(Code::kBadState, "pages of slot " + Number(ref.slot) + " are missing");
    }
    receiver_->Forget(ref);
    if (Status attached = pool_->Attach(sequence->kv); !attached.ok()) return attached;
    sequence->length = sequence->given;
  } else {
    receiver_->Forget(ref);
    Result<int> arrived = pool_->AttachArrived(sequence->kv);
    if (!arrived.ok()) return arrived.status();
    sequence->length = *arrived;
  }
  sequence->phase = Sequence::Phase::kRunnable;
  pool_->Advance(sequence->kv, sequence->tokens, sequence->length);
  EmitCacheChanges();
  if (first_token.has_value()) {
    sequence->tokens.push_back(*first_token);
    if (sequence->given + 1 >= sequence->min_tokens) sequence->sampling.banned.clear();
  }
  return sequence->length;
}

Result<bool> Engine::CloseSequence(SequenceRef ref, bool keep) {
  std::lock_guard lock(mutex_);
  Result<Sequence*> found = Find(ref);
  if (!found.ok()) return found.status();
  const bool running = (*found)->running;
  End(*found, keep);
  EmitCacheChanges();
  return running;
}

void Engine::End(Sequence* sequence, bool keep) {
  Leave(sequence);
  SetWillRun(sequence, false);
  if (sequence->phase != Sequence::Phase::kRunnable) receiver_->Forget(sequence->ref);
  // What was not computed never will be: the peer need not wait for the deadline to hear so.
  if (sequence->exporting && sequence->length < sequence->given) sender_->Abort(sequence->ref);
  // Rows that gave no number are nothing to go on from.
  sequences_.Retire(sequence, keep && sequence->finish != Finish::kNumeric);
  ReleaseIfIdle(sequence);
}

void Engine::ReleaseIfIdle(Sequence* sequence) {
  if (!sequence->closing || sequence->running || sequence->exporting) return;
  pool_->Close(sequence->kv, sequence->keep);
  sequences_.Remove(sequence);
}

void Engine::EmitCacheChanges() {
  KvChanges changes = pool_->TakeChanges();
  if (!changes.stored.empty() || !changes.removed.empty()) outbox_.Put(std::move(changes));
}

std::vector<EngineMessage> Engine::TakeMessages() {
  const bool was_full = outbox_.steps() >= kMostUntoldSteps;
  std::vector<EngineMessage> messages = outbox_.Take();
  if (was_full) {
    // The engine thread waits for this, or is about to: not between its look and its sleep.
    { std::lock_guard lock(mutex_); }
    work_.notify_one();
  }
  return messages;
}

Result<EngineStats> Engine::Stats() {
  std::lock_guard lock(mutex_);
  if (Status usable = CheckUsable(); !usable.ok()) return usable;
  EngineStats stats = counters_;
  stats.blocks = pool_->Counts();
  stats.blocks_available = pool_->Available();
  stats.pool = pool_->PoolCounters();
  stats.second_tier = pool_->TierCounters();
  stats.sequences = sequences_.taken();
  if (sender_ != nullptr) stats.sent = sender_->counters();
  if (receiver_ != nullptr) stats.received = receiver_->counters();
  return stats;
}

Result<std::vector<uint8_t>> Engine::PrefixHashes() {
  std::lock_guard lock(mutex_);
  if (Status usable = CheckUsable(); !usable.ok()) return usable;
  return pool_->PrefixHashes();
}

Result<std::string> Engine::CheckInvariants() {
  std::lock_guard lock(mutex_);
  if (Status usable = CheckUsable(); !usable.ok()) return usable;
  if (std::string broken = pool_->CheckInvariants(); !broken.empty()) return broken;
  int taken = 0, batched = 0, will_run = 0;
  for (int slot = 0; slot < sequences_.slots(); ++slot) {
    const Sequence* sequence = sequences_.At(slot);
    if (sequence == nullptr) continue;
    ++taken;
    const std::string name = "slot " + Number(slot);
    if (sequence->ref.slot != slot) return name + " holds a sequence of slot " + Number(sequence->ref.slot);
    if (sequence->length > sequence->capacity || sequence->length > static_cast<int>(sequence->tokens.size())) {
      return name + " has more rows than tokens or blocks";
    }
    if (sequence->table.size() * kBlockTokens < static_cast<size_t>(sequence->capacity)) {
      return name + " has fewer blocks than it was promised";
    }
    if (sequence->closing && !sequence->running && !sequence->exporting) return name + " is closed but not released";
    if (sequence->batched && (sequence->closing || sequence->ended())) return name + " has ended and is in the batch";
    batched += sequence->batched ? 1 : 0;
    will_run += sequence->will_run ? 1 : 0;
  }
  if (batched != static_cast<int>(batch_.size()) || will_run != will_run_) return std::string("the batch is miscounted");
  if (taken != sequences_.taken()) return std::string("taken slots are miscounted");
  return std::string();
}

}  // namespace margay
