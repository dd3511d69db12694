// Random use of a prefill and a decode engine over a model whose tokens depend on every row before them.
//   engine_random <seed> <requests> <shared memory: 0 or 1> <drafts per step>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "claim.h"
#include "engine/engine.h"

namespace margay {
namespace {

constexpr int kVocab = 64;
constexpr int kContext = 600;
constexpr int kAttentions = 4;
constexpr int kMaxRows = 128;
constexpr int kSlots = 12;
constexpr int kBlocks = 18;
constexpr int32_t kEos = 2;
constexpr int64_t kEpoch = 3;

// A row names everything up to its token: chained as block hashes are.
uint32_t Chain(uint32_t before, int32_t token) {
  uint32_t mixed = (before ^ static_cast<uint32_t>(token)) * 0x9e3779b1u;
  return mixed ^ mixed >> 15;
}
int32_t TokenAfter(uint32_t chain) {
  return chain % 61 == 0 ? kEos : static_cast<int32_t>(3 + chain % (kVocab - 3));
}
int32_t ExpectedToken(const std::vector<int32_t>& tokens) {
  uint32_t chain = 0;
  for (const int32_t token : tokens) chain = Chain(chain, token);
  return TokenAfter(chain);
}

class ChainModel final : public Model {
 public:
  explicit ChainModel(bool drafts) {
    facts_.model_hash = "chain";
    facts_.vocab_size = kVocab;
    facts_.context_length = kContext;
    facts_.attentions = kAttentions + (drafts ? 1 : 0);
    facts_.drafts = drafts;
    facts_.kv = {facts_.attentions, 2, KvType::kF32};
    facts_.eos_tokens = {kEos};
  }
  const ModelFacts& facts() const override { return facts_; }
  void ForceRouting(const std::vector<int32_t>*, std::vector<int32_t>*) override {}

  Status Forward(std::span<const SequenceRows> sequences, const KvMemory& kv, const AttentionDone& done,
                 float* logits) override {
    for (int attention = 0; attention < kAttentions; ++attention) {
      hidden_.clear();
      for (const SequenceRows& rows : sequences) {
        uint32_t chain = 0;
        for (int at = 0; at < rows.position; ++at) {
          const auto [value, position] = Row(kv, rows, attention, at);
          if (position != static_cast<uint32_t>(at)) return Status(Code::kBadState, "a row of another place was read");
          chain = value;
        }
        for (int i = 0; i < rows.count; ++i) {
          chain = Chain(chain, rows.tokens[i]);
          Write(kv, rows, attention, rows.position + i, chain);
          hidden_.push_back(chain);
        }
      }
      done(attention);
    }
    for (const SequenceRows& rows : sequences) {
      // Out of any attention: all of them must have arrived.
      const int attention = rows.position % kAttentions;
      const int end = rows.position + rows.count;
      for (int at = end - rows.logits_rows; at < end; ++at) {
        Say(TokenAfter(Row(kv, rows, attention, at).first), 1, &logits);
      }
    }
    return Status::Ok();
  }

  // A row is the chain up to the token that follows. Knows that token's successor most of the time, but only where the
  // row before is as it should be.
  Status Draft(std::span<const DraftRows> sequences, const KvMemory& kv, const AttentionDone& done,
               float* logits) override {
    std::vector<uint32_t> hidden;
    for (const auto& [rows, source] : sequences) {
      for (int at = 0; at < rows.position; ++at) {
        if (Row(kv, rows, kAttentions, at).second != static_cast<uint32_t>(at)) {
          return Status(Code::kBadState, "a draft row of another place was read");
        }
      }
      for (int i = 0; i < rows.count; ++i) {
        const uint32_t before = hidden_.at(static_cast<size_t>(source + i));
        const int at = rows.position + i;
        const bool knows = at == 0 || Row(kv, rows, kAttentions, at - 1).first == before;
        const uint32_t chain = Chain(before, rows.tokens[i]);
        Write(kv, rows, kAttentions, at, chain);
        if (i < rows.count - rows.logits_rows) continue;
        hidden.push_back(chain);
        const int32_t token = TokenAfter(knows && chain % 8 != 0 ? chain : chain + 1);
        Say(token, chain % 5 == 0 ? 1 : 20, &logits);
      }
    }
    hidden_ = std::move(hidden);
    if (done) done(kAttentions);
    return Status::Ok();
  }

 private:
  static std::byte* Address(const KvMemory& kv, const SequenceRows& rows, int attention, int at) {
    return kv.page(attention, rows.block_table[at / kBlockTokens]) +
           static_cast<size_t>(at % kBlockTokens) * kv.layout.row_bytes();
  }
  static void Write(const KvMemory& kv, const SequenceRows& rows, int attention, int at, uint32_t chain) {
    const uint32_t values[2] = {chain, static_cast<uint32_t>(at)};
    std::memcpy(Address(kv, rows, attention, at), values, sizeof(values));
  }
  static void Say(int32_t token, float logit, float** logits) {
    std::fill(*logits, *logits + kVocab, 0.0f);
    (*logits)[token] = logit;
    *logits += kVocab;
  }
  static std::pair<uint32_t, uint32_t> Row(const KvMemory& kv, const SequenceRows& rows, int attention, int at) {
    uint32_t values[2];
    std::memcpy(values, Address(kv, rows, attention, at), sizeof(values));
    return {values[0], values[1]};
  }

  ModelFacts facts_;
  std::vector<uint32_t> hidden_;  // chains of the rows a draft may begin at
};

struct Driven {
  SequenceRef ref;
  std::vector<int32_t> tokens;  // known
  int given = 0;
  int limit = 0;
  int capacity = 0;
  int length = 0;
  bool joined = false;  // is in the batch, or was
  int planned_rows = 0;
  int planned_tokens = 0;
  bool waiting = false;
  bool received = false;
  bool ended = false;
  SequenceRef prefill;
};

struct Seen {
  int requests = 0, tokens = 0, attached = 0, computed_rest = 0, aborted = 0, lapsed = 0, failed = 0;
  int repeated = 0, refused_growth = 0;
};

// One engine and what its user knows of it.
class Rank {
 public:
  Rank(bool decode, bool shared_memory, int drafts, Finding* finding, Seen* seen)
      : decode_(decode), finding_(finding), seen_(seen) {
    EngineOptions options;
    options.slots = kSlots;
    options.kv_blocks = kBlocks;
    options.decode = decode;
    options.kv_host = "127.0.0.1";
    options.model.max_rows = kMaxRows;
    options.allow_shared_memory = shared_memory;
    options.speculation = drafts;
    Result<std::unique_ptr<Engine>> opened = Engine::OpenWith(std::make_unique<ChainModel>(drafts > 0), options, [] {});
    if (!opened.ok()) std::abort();
    engine = std::move(*opened);
    if (!engine->SetEpoch(kEpoch).ok()) std::abort();
  }

  Driven* Open(const SequenceSpec& spec) {
    Result<OpenedSequence> opened = engine->OpenSequence(spec);
    if (!opened.ok()) return nullptr;
    Driven driven;
    driven.ref = opened->ref;
    driven.tokens = spec.tokens;
    driven.given = static_cast<int>(spec.tokens.size());
    driven.limit = std::min<int>(static_cast<int>(spec.prompt_length + spec.max_new_tokens), kContext);
    driven.capacity = std::clamp<int>(static_cast<int>(spec.reserve), driven.given, driven.limit);
    driven.length = opened->cached_tokens;
    driven.waiting = spec.receive;
    return &(live[opened->ref.slot] = std::move(driven));
  }

  void Close(std::map<int, Driven>::iterator at, bool keep) {
    const Result<bool> closed = engine->CloseSequence(at->second.ref, keep);
    Expect(closed.ok() ? Status::Ok() : closed.status(), "closing");
    live.erase(at);
  }

  // A random part of what can be computed, and random changes of the batch.
  void Plan(std::mt19937_64* random) {
    if (in_flight_.size() >= 2) return;
    const auto below = [random](int bound) { return static_cast<int>((*random)() % static_cast<uint64_t>(bound)); };
    std::vector<int32_t> plan;
    // Everybody may be in the batch, with a row.
    int room = kMaxRows - kSlots;
    for (auto& [slot, driven] : live) {
      if (driven.waiting || driven.ended || below(4) == 0) continue;
      const int length = driven.length + driven.planned_rows;
      const int known = static_cast<int>(driven.tokens.size()) + driven.planned_tokens;
      const bool whole = length >= driven.given;
      const int left = (decode_ ? std::min(known, driven.capacity) : driven.given) - length;
      const int rows = driven.joined ? 0 : std::min({left, room, 1 + below(100)});
      const bool last = length + rows >= driven.given;
      int reserve = 0;
      if (decode_ && (driven.joined || whole || (last && rows > 0)) && below(3) > 0) reserve = known + 1 + below(80);
      if (rows < 1 && reserve == 0 && !(driven.joined && below(8) == 0)) continue;
      plan.insert(plan.end(), {driven.ref.slot, driven.ref.generation, std::max(rows, 0), reserve});
      room -= std::max(rows, 0);
    }
    // A reservation that lapsed and is not known of yet is no part of any plan: it waits.
    if (plan.empty()) return;
    if (Result<int64_t> number = engine->Submit(plan); !number.ok()) {
      ++seen_->refused_growth;
      return Expect(number.status().code() == Code::kNoBlocks ? Status::Ok() : number.status(), "a plan");
    }
    for (size_t at = 0; at < plan.size(); at += kPlanEntryWidth) {
      Driven& driven = live[plan[at]];
      driven.planned_rows += plan[at + 2];
      const int known = static_cast<int>(driven.tokens.size()) + driven.planned_tokens;
      driven.planned_tokens += plan[at + 2] > 0 && driven.length + driven.planned_rows == known ? 1 : 0;
      driven.joined = driven.joined || plan[at + 3] > 0;
      driven.capacity = std::max(driven.capacity, std::min(plan[at + 3], driven.limit));
    }
    in_flight_.push_back(std::move(plan));
  }

  void Listen() {
    for (const EngineMessage& message : engine->TakeMessages()) {
      if (const auto* report = std::get_if<StepReport>(&message)) Settle(*report);
      if (const auto* transfer = std::get_if<TransferEvent>(&message)) {
        Driven* driven = Find(transfer->outcome.sequence);
        if (!transfer->outcome.ok) ++seen_->failed;
        if (driven != nullptr && !transfer->sent && transfer->outcome.ok) driven->received = true;
      }
      if (const auto* lapsed = std::get_if<LapsedEvent>(&message)) {
        if (Find(lapsed->sequence) != nullptr) live.erase(lapsed->sequence.slot);
        ++seen_->lapsed;
      }
      if (const auto* fatal = std::get_if<FatalReport>(&message)) finding_->Expect(false, fatal->message);
    }
  }

  // Empty when nothing is held.
  std::string Held() {
    const Result<EngineStats> stats = engine->Stats();
    if (!stats.ok()) return stats.status().message();
    const auto count = [&](BlockState state) { return stats.value().blocks[static_cast<size_t>(state)]; };
    const int held = kBlocks - count(BlockState::kFree) - count(BlockState::kCached);
    if (held == 0 && stats.value().sequences == 0) return "";
    return std::to_string(held) + " blocks and " + std::to_string(stats.value().sequences) + " sequences are held";
  }

  void CheckInvariants() {
    const Result<std::string> broken = engine->CheckInvariants();
    finding_->Expect(broken.ok() && broken.value().empty(), broken.ok() ? broken.value() : "no invariants to be had");
  }

  void Expect(const Status& status, const std::string& what) {
    finding_->Expect(status.ok(), what + ": " + status.message());
  }

  std::unique_ptr<Engine> engine;
  std::map<int, Driven> live;  // by slot

 private:
  Driven* Find(SequenceRef ref) {
    const auto found = live.find(ref.slot);
    return found != live.end() && found->second.ref.generation == ref.generation ? &found->second : nullptr;
  }

  void Settle(const StepReport& report) {
    if (report.plan >= 0) {
      // Rows of the plan come first, in its order.
      const int32_t* done = report.entries.data();
      for (size_t at = 0; at < in_flight_.front().size(); at += kPlanEntryWidth) {
        const int32_t* entry = &in_flight_.front()[at];
        if (entry[2] == 0) continue;
        if (Driven* driven = Find({entry[0], entry[1]}); driven != nullptr) {
          driven->planned_rows -= entry[2];
          driven->planned_tokens -= done[3];
        }
        done += kStepEntryWidth;
      }
      in_flight_.pop_front();
    } else {
      ++seen_->repeated;
    }
    size_t token = 0;
    for (size_t at = 0; at < report.entries.size(); at += kStepEntryWidth) {
      const int32_t* entry = &report.entries[at];
      Driven* driven = Find({entry[0], entry[1]});
      const auto finish = static_cast<Finish>(entry[4]);
      for (int i = 1; i <= entry[3]; ++i) {
        TakeToken(driven, report.tokens[token++], i == entry[3] ? finish : Finish::kNone);
      }
      if (driven == nullptr || finish == Finish::kSkipped) continue;
      driven->length = entry[5];
      driven->ended = finish != Finish::kNone;
      finding_->Expect(driven->length <= driven->capacity, "a sequence outran what is reserved for it");
    }
    finding_->Same("tokens of a step", report.tokens.size(), token);
  }

  void TakeToken(Driven* driven, int32_t token, Finish finish) {
    if (driven == nullptr) return;
    ++seen_->tokens;
    finding_->Same("a token", token, ExpectedToken(driven->tokens));
    driven->tokens.push_back(token);
    const bool full = static_cast<int>(driven->tokens.size()) >= driven->limit;
    const Finish wanted = token == kEos ? Finish::kStop : full ? Finish::kLength : Finish::kNone;
    finding_->Same("a finish", static_cast<int>(finish), static_cast<int>(wanted));
  }

  const bool decode_;
  Finding* finding_;
  Seen* seen_;
  std::deque<std::vector<int32_t>> in_flight_;
};

class RandomUse {
 public:
  RandomUse(uint64_t seed, bool shared_memory, int drafts)
      : random_(seed),
        drafts_(drafts),
        prefill_(false, shared_memory, drafts, &finding_, &seen_),
        decode_(true, shared_memory, drafts, &finding_, &seen_) {}

  std::string Run(int requests) {
    const double end_ms = EpochMs() + 90'000;
    while (seen_.requests < requests && !finding_.any()) {
      Act();
      finding_.Expect(EpochMs() < end_ms, "the requests do not end");
    }
    for (Rank* rank : {&prefill_, &decode_}) {
      rank->Listen();
      while (!rank->live.empty() && !finding_.any()) {
        rank->Close(rank->live.begin(), true);
        rank->Listen();
      }
    }
    const double held_ms = EpochMs() + 10'000;
    while (!(prefill_.Held() + decode_.Held()).empty() && EpochMs() < held_ms) {
      prefill_.Listen();
      decode_.Listen();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    finding_.Same("what prefill holds at the end", prefill_.Held(), "");
    finding_.Same("what decode holds at the end", decode_.Held(), "");
    prefill_.CheckInvariants();
    decode_.CheckInvariants();
    if (drafts_ > 0) CheckDrafts();
    const int few = std::max(1, requests / 200);
    finding_.Expect(std::min({seen_.attached, seen_.computed_rest, seen_.aborted, seen_.lapsed, seen_.failed,
                              seen_.repeated, seen_.refused_growth}) >= few,
                    "attached " + std::to_string(seen_.attached) + ", computed the rest " +
                        std::to_string(seen_.computed_rest) + ", aborted " + std::to_string(seen_.aborted) +
                        ", lapsed " + std::to_string(seen_.lapsed) + ", failed " + std::to_string(seen_.failed) +
                        ", repeated " + std::to_string(seen_.repeated) + ", refused " +
                        std::to_string(seen_.refused_growth) +
                        ": the run shows too little");
    return finding_.what();
  }

 private:
  void CheckDrafts() {
    const Result<EngineStats> stats = decode_.engine->Stats();
    if (!stats.ok()) return finding_.Expect(false, stats.status().message());
    const EngineStats& seen = stats.value();
    const std::string counts = std::to_string(seen.drafts_proposed) + " drafts proposed, " +
                               std::to_string(seen.drafts_verified) + " verified, " + std::to_string(seen.drafts_accepted) + " accepted";
    finding_.Expect(seen.drafts_proposed > seen.drafts_verified + seen.drafts_proposed / 10, "few drafts are filtered: " + counts);
    finding_.Expect(5 * seen.drafts_accepted > 3 * seen.drafts_verified, "rows of the draft layer are missing: " + counts);
    finding_.Expect(10 * seen.drafts_accepted < 9 * seen.drafts_verified, "no draft is wrong: " + counts);
  }

  int Below(int bound) { return static_cast<int>(random_() % static_cast<uint64_t>(bound)); }

  SequenceSpec NewSpec() {
    SequenceSpec spec;
    const int salt = Below(4);  // few, so that prefixes are shared
    const int count = 1 + Below(300);
    for (int i = 0; i < count; ++i) spec.tokens.push_back(3 + (i * 7 + salt * 11) % (kVocab - 3));
    spec.prompt_length = static_cast<int64_t>(spec.tokens.size());
    spec.max_new_tokens = 2 + Below(Below(4) == 0 ? 200 : 30);
    spec.reserve = Below(2) == 0 ? 0 : Below(400);
    return spec;
  }

  void Act() {
    prefill_.Listen();
    decode_.Listen();
    switch (Below(8)) {
      case 0: return Reserve();
      case 1:
        if (Below(2) == 0) decode_.Open(NewSpec());
        return;
      case 2: return Attach();
      case 3: return Close(Below(2) == 0 ? &prefill_ : &decode_);
      case 4:
        if (Below(16) != 0) return;
        prefill_.CheckInvariants();
        return decode_.CheckInvariants();
      case 5:
        if (Below(8) == 0) std::this_thread::sleep_for(std::chrono::microseconds(Below(500)));
        return;
      default: prefill_.Plan(&random_); return decode_.Plan(&random_);
    }
  }

  void Reserve() {
    SequenceSpec spec = NewSpec();
    spec.receive = true;
    spec.deadline_ms = static_cast<int64_t>(EpochMs()) + (Below(3) == 0 ? Below(20) : 60'000);
    Driven* there = decode_.Open(spec);
    if (there == nullptr) return;
    const int cached = there->length;
    spec.receive = false;
    spec.reserve = 0;
    Driven* here = prefill_.Open(spec);
    if (here == nullptr) return;
    ExportTarget target;
    target.host = "127.0.0.1";
    target.port = decode_.engine->kv_port();
    target.host_key = HostKey();
    target.epoch = Below(12) == 0 ? kEpoch - 1 : kEpoch;
    target.remote = there->ref;
    target.cached_tokens = cached;
    target.deadline_ms = static_cast<int64_t>(EpochMs()) + 5'000;
    prefill_.Expect(prefill_.engine->ExportTo(here->ref, target), "an export");
  }

  void Attach() {
    for (auto& [slot, driven] : decode_.live) {
      if (!driven.waiting || (!driven.received && Below(200) != 0)) continue;
      const std::optional<int32_t> token =
          driven.received ? std::optional<int32_t>(ExpectedToken(driven.tokens)) : std::nullopt;
      const Result<int> length = decode_.engine->Attach(driven.ref, token);
      if (!length.ok()) {
        // It lapsed, and that is about to be told.
        decode_.Expect(length.status().code() == Code::kStaleHandle ? Status::Ok() : length.status(), "attaching");
        return;
      }
      driven.waiting = false;
      driven.length = length.value();
      if (token.has_value()) driven.tokens.push_back(*token);
      driven.ended = token == kEos;
      ++(token.has_value() ? seen_.attached : seen_.computed_rest);
      return;
    }
  }

  void Close(Rank* rank) {
    for (auto at = rank->live.begin(); at != rank->live.end(); ++at) {
      const Driven& driven = at->second;
      const bool over = driven.ended || (rank == &prefill_ && driven.length >= driven.given);
      if (driven.waiting || (!over && Below(60) != 0)) continue;
      ++(over ? seen_.requests : seen_.aborted);
      return rank->Close(at, Below(2) == 0);
    }
  }

  std::mt19937_64 random_;
  const int drafts_;
  Finding finding_;
  Seen seen_;
  Rank prefill_;
  Rank decode_;
};

}  // namespace
}  // namespace margay

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  margay::Claims claims;
  margay::RandomUse use(std::strtoull(argv[1], nullptr, 10), std::atoi(argv[3]) != 0, std::atoi(argv[4]));
  claims.Check("every token is right and nothing is held at the end", use.Run(std::atoi(argv[2])));
  return claims.ExitCode();
}
