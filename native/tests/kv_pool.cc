// What the KV pool promises.
//   kv_pool                      the claims
//   kv_pool random <seed> <ops>  random operations against a simple model
//   kv_pool states               the transition table, as JSON
//   kv_pool hashes <model> <n>   block hashes of the tokens i * 2654435761 mod 2^31, in hexadecimal
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "claim.h"
#include "core/sha256.h"
#include "kv/kv_pool.h"

namespace margay {
namespace {

constexpr KvLayout kLayout{2, 4, KvType::kF32};
using Tokens = std::vector<int32_t>;

std::unique_ptr<KvPool> NewPool(int blocks) {
  auto pool = KvPool::Create(kLayout, blocks, "model");
  if (!pool.ok()) std::abort();
  return std::move(*pool);
}

Tokens Count(int from, int count) {
  Tokens tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

int CountOf(const KvPool& pool, BlockState state) { return pool.Counts()[static_cast<size_t>(state)]; }

// Computes a whole sequence and gives it back.
int RunThrough(KvPool& pool, const Tokens& tokens, bool keep = true) {
  const auto opened = pool.Open(tokens, static_cast<int>(tokens.size()), KvUse::kCompute);
  if (!opened.ok()) return -1;
  pool.Advance(opened.value().id, tokens, static_cast<int>(tokens.size()));
  pool.Close(opened.value().id, keep);
  return opened.value().cached_tokens;
}

std::string PrefixIsShared() {
  Finding finding;
  const auto pool = NewPool(8);
  const Tokens tokens = Count(0, 200);
  const auto first = pool->Open(tokens, 200, KvUse::kCompute);
  pool->Advance(first.value().id, tokens, 130);
  const auto second = pool->Open(tokens, 200, KvUse::kCompute);  // while the first is still at work
  finding.Same("cached tokens", second.value().cached_tokens, 128);
  finding.Same("shared block", pool->BlockTable(second.value().id)[1], pool->BlockTable(first.value().id)[1]);
  finding.Expect(pool->BlockTable(second.value().id)[2] != pool->BlockTable(first.value().id)[2], "a partial block is shared");
  pool->Close(first.value().id, true);
  pool->Close(second.value().id, true);
  finding.Same("cached blocks", CountOf(*pool, BlockState::kCached), 2);
  finding.Same("free blocks", CountOf(*pool, BlockState::kFree), 6);
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string OneTokenIsLeft() {
  Finding finding;
  const auto pool = NewPool(8);
  RunThrough(*pool, Count(0, 128));
  finding.Same("cached of 128", RunThrough(*pool, Count(0, 128)), 64);
  finding.Same("cached of 129", RunThrough(*pool, Count(0, 129)), 128);
  return finding.what();
}

std::string EqualContentStaysPrivate() {
  Finding finding;
  const auto pool = NewPool(8);
  const Tokens tokens = Count(0, 128);
  const auto a = pool->Open(tokens, 128, KvUse::kCompute);
  const auto b = pool->Open(tokens, 128, KvUse::kCompute);
  pool->Advance(a.value().id, tokens, 128);
  pool->Advance(b.value().id, tokens, 128);
  pool->Close(b.value().id, true);
  finding.Same("free after the second", CountOf(*pool, BlockState::kFree), 6);
  pool->Close(a.value().id, true);
  finding.Same("cached", CountOf(*pool, BlockState::kCached), 2);
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string OldestGoesFirst() {
  Finding finding;
  const auto pool = NewPool(6);
  RunThrough(*pool, Count(0, 193));     // 3 cached
  RunThrough(*pool, Count(1000, 129));  // 2 cached
  RunThrough(*pool, Count(0, 193));     // used again
  pool->TakeChanges();
  RunThrough(*pool, Count(5000, 65));  // 1 free and 1 evicted: the last block of the one not used for longest
  finding.Same("removed", pool->TakeChanges().removed.size() / sizeof(BlockHash), size_t{1});
  finding.Same("first prompt", RunThrough(*pool, Count(0, 193)), 192);
  finding.Same("second prompt", RunThrough(*pool, Count(1000, 129)), 64);
  return finding.what();
}

std::string PinnedIsNotEvicted() {
  Finding finding;
  const auto pool = NewPool(4);
  RunThrough(*pool, Count(0, 129));
  const auto user = pool->Open(Count(0, 129), 129, KvUse::kCompute);  // two hits, one own
  finding.Same("available", pool->Available(), 1);
  const auto greedy = pool->Open(Count(9000, 65), 65, KvUse::kCompute);
  finding.Expect(!greedy.ok() && greedy.status().code() == Code::kNoBlocks, "two blocks were leased from one");
  finding.Same("available after refusal", pool->Available(), 1);
  finding.Same("broken", pool->CheckInvariants(), "");
  pool->Close(user.value().id, true);
  return finding.what();
}

std::string DroppedWhenNotKept() {
  Finding finding;
  const auto pool = NewPool(4);
  RunThrough(*pool, Count(0, 65));
  RunThrough(*pool, Count(0, 193), false);  // one hit stays, two own blocks go
  finding.Same("cached", CountOf(*pool, BlockState::kCached), 1);
  finding.Same("free", CountOf(*pool, BlockState::kFree), 3);
  return finding.what();
}

std::string ReceivedThenAttached() {
  Finding finding;
  const auto pool = NewPool(4);
  const Tokens tokens = Count(0, 100);
  const SequenceKvId id = pool->Open(tokens, 140, KvUse::kReceive).value().id;
  finding.Expect(pool->Attach(id).code() == Code::kBadState, "attached without its pages");
  const auto leases = pool->StartFlight(id, 0, 2, Flight::kIn);
  for (const BlockLease& lease : leases.value()) {
    finding.Expect(pool->MarkReceiving(lease) && pool->MarkReceived(lease), "an arrival was refused");
  }
  pool->EndFlight(leases.value(), Flight::kIn);
  finding.Expect(pool->Attach(id).ok(), "complete, and not attached");
  finding.Same("attached", CountOf(*pool, BlockState::kAttached), 2);
  Tokens longer = Count(0, 140);
  pool->Advance(id, longer, 128);
  finding.Same("still attached", CountOf(*pool, BlockState::kAttached), 1);
  finding.Same("sealed", CountOf(*pool, BlockState::kSealed), 1);
  pool->Advance(id, longer, 129);
  pool->Close(id, true);
  finding.Same("cached", CountOf(*pool, BlockState::kCached), 2);
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string ArrivedPartIsKept() {
  Finding finding;
  const auto pool = NewPool(4);
  const Tokens tokens = Count(0, 200);
  const SequenceKvId id = pool->Open(tokens, 200, KvUse::kReceive).value().id;
  const auto leases = pool->StartFlight(id, 0, 4, Flight::kIn).value();
  for (const size_t block : {0u, 2u}) {
    pool->MarkReceiving(leases[block]);
    pool->MarkReceived(leases[block]);
  }
  pool->MarkReceiving(leases[1]);
  finding.Expect(!pool->AttachArrived(id).ok(), "attached while the receiver may write");
  pool->EndFlight(leases, Flight::kIn);
  finding.Same("usable", pool->AttachArrived(id).value(), 64);
  finding.Expect(!pool->MarkReceiving(leases[1]) && !pool->MarkReceiving(leases[2]), "a void lease was obeyed (B2)");
  pool->Advance(id, tokens, 200);
  pool->Close(id, true);
  finding.Same("cached", CountOf(*pool, BlockState::kCached), 3);
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string HeldUntilFlightsEnd() {
  Finding finding;
  const auto pool = NewPool(2);
  const Tokens tokens = Count(0, 100);
  const SequenceKvId id = pool->Open(tokens, 100, KvUse::kCompute).value().id;
  const auto leases = pool->StartFlight(id, 0, 2, Flight::kOut).value();
  pool->Advance(id, tokens, 100);
  pool->Close(id, true);
  finding.Same("sending", CountOf(*pool, BlockState::kSending), 2);
  finding.Same("available", pool->Available(), 0);
  pool->EndFlight(leases, Flight::kOut);
  finding.Same("cached", CountOf(*pool, BlockState::kCached), 1);
  finding.Same("free", CountOf(*pool, BlockState::kFree), 1);
  pool->EndFlight(leases, Flight::kOut);  // a second time: the lease of the freed block is void, the other has no flight
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string ChangesAreNet() {
  Finding finding;
  const auto pool = NewPool(1);
  RunThrough(*pool, Count(0, 64));
  RunThrough(*pool, Count(100, 64));  // evicts it
  const KvChanges changes = pool->TakeChanges();
  const BlockHash last = BlockHashes("model", Count(100, 64))[0];
  finding.Expect(changes.removed.empty(), "told the removal of what was never told");
  finding.Expect(changes.stored == std::vector<uint8_t>(last.begin(), last.end()), "the stored hash is another");
  finding.Expect(pool->PrefixHashes() == changes.stored, "changes and list disagree");
  finding.Expect(pool->TakeChanges().stored.empty(), "changes were told twice");
  return finding.what();
}

std::string BadArgumentsAreRefused() {
  Finding finding;
  const auto pool = NewPool(2);
  finding.Expect(!KvPool::Create(kLayout, 0, "m").ok(), "a pool without blocks");
  finding.Expect(!KvPool::Create({0, 4, KvType::kF32}, 4, "m").ok(), "a pool without attentions");
  finding.Expect(!pool->Open({}, 10, KvUse::kCompute).ok(), "opened without a token");
  finding.Expect(!pool->Open(Count(0, 10), 9, KvUse::kCompute).ok(), "opened with too little capacity");
  finding.Expect(!pool->StartFlight(77, 0, 1, Flight::kOut).ok(), "an unknown sequence took off");
  const SequenceKvId id = pool->Open(Count(0, 10), 10, KvUse::kCompute).value().id;
  finding.Expect(!pool->StartFlight(id, 0, 2, Flight::kOut).ok(), "a block beyond the end took off");
  finding.Expect(!pool->StartFlight(id, 0, 1, Flight::kIn).ok(), "a computing sequence expects pages");
  finding.Expect(pool->Attach(id).code() == Code::kBadState, "a computing sequence was attached");
  pool->Close(id, true);
  pool->Close(id, true);
  pool->Advance(id, Count(0, 10), 10);
  finding.Expect(pool->BlockTable(id).empty(), "a closed sequence has blocks");
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

// A model of the pool in sets and maps: what is in use by whom, and what every row must hold.
class RandomUse {
 public:
  RandomUse(uint64_t seed, int blocks) : random_(seed), blocks_(blocks), pool_(NewPool(blocks)) {}

  std::string Run(int operations) {
    for (int i = 0; i < operations && !finding_.any(); ++i) {
      Step();
      Compare();
      if (finding_.any()) return "operation " + std::to_string(i) + ": " + finding_.what();
    }
    while (!live_.empty() && !finding_.any()) CloseOne();
    while (!flights_.empty()) LandOne();
    Compare();
    finding_.Same("free and cached at the end",
                  CountOf(*pool_, BlockState::kFree) + CountOf(*pool_, BlockState::kCached), blocks_);
    finding_.Expect(hits_ > operations / 100, "hardly any prefix was found: the run shows nothing");
    return finding_.what();
  }

 private:
  struct Live {
    Tokens tokens;  // longer than the prompt: what decoding will append
    int prompt = 0;
    int capacity = 0;
    int length = 0;
    bool receiving = false;
    std::vector<BlockLease> in;
    std::vector<int> arrived;  // per expected block: 0 nothing, 1 receiving, 2 received
  };
  struct Away {
    std::vector<BlockLease> leases;
    std::vector<std::vector<float>> rows;  // of readable leases, as they were at take-off
  };

  int Pick(int below) { return static_cast<int>(random_() % static_cast<uint64_t>(below)); }
  float* Row(int32_t block, int row) {
    return reinterpret_cast<float*>(pool_->memory().page(1, block) + static_cast<size_t>(row) * kLayout.row_bytes());
  }
  void Write(int32_t block, const Tokens& tokens, int from, int to) {
    for (int i = from; i < to; ++i) *Row(block, i % kBlockTokens) = static_cast<float>(tokens[static_cast<size_t>(i)]);
  }
  void WriteAll(SequenceKvId id, const Live& live, int from, int to) {
    const auto table = pool_->BlockTable(id);
    for (int i = from; i < to; ++i) Write(table[static_cast<size_t>(i / kBlockTokens)], live.tokens, i, i + 1);
  }

  void Step() {
    const int dice = Pick(100);
    if (dice < 25) return OpenOne();
    if (dice < 55) return AdvanceOne();
    if (dice < 70) return ReceiveOne();
    if (dice < 80) return FlyOne();
    if (dice < 88) return LandOne();
    if (dice < 90) return Tell();
    CloseOne();
  }

  void OpenOne() {
    Live live;
    // Few families of prompts that branch late: prefixes meet.
    const int family = Pick(4), branch = Pick(3) * kBlockTokens + Pick(2) * 7;
    live.prompt = 1 + Pick(5 * kBlockTokens);
    live.capacity = live.prompt + Pick(kBlockTokens * 2);
    for (int i = 0; i < live.capacity; ++i) live.tokens.push_back(i < branch ? family * 1000 + i : family * 1000 + i + 500);
    live.receiving = Pick(3) == 0;
    const std::span<const int32_t> prompt(live.tokens.data(), static_cast<size_t>(live.prompt));

    int hits = 0;
    const auto hashes = BlockHashes("model", prompt);
    std::set<int32_t> used = InUse();
    const int available = blocks_ - static_cast<int>(used.size());
    while (hits < (live.prompt - 1) / kBlockTokens && told_.contains(hashes[static_cast<size_t>(hits)])) ++hits;
    const auto opened = pool_->Open(prompt, live.capacity, live.receiving ? KvUse::kReceive : KvUse::kCompute);
    if (!opened.ok()) {
      finding_.Expect(opened.status().code() == Code::kNoBlocks, "refused: " + opened.status().message());
      finding_.Expect((live.capacity + kBlockTokens - 1) / kBlockTokens > available - hits, "refused, and there was room");
      return;
    }
    const SequenceKvId id = opened.value().id;
    finding_.Same("cached tokens", opened.value().cached_tokens, hits * kBlockTokens);
    hits_ += hits;
    live.length = opened.value().cached_tokens;
    const auto table = pool_->BlockTable(id);
    for (size_t i = static_cast<size_t>(hits); i < table.size(); ++i) {
      finding_.Expect(!used.contains(table[i]), "a block in use was leased again");
    }
    if (live.receiving) {
      const int count = (live.prompt + kBlockTokens - 1) / kBlockTokens - hits;
      live.in = pool_->StartFlight(id, hits, count, Flight::kIn).value();
      live.arrived.assign(static_cast<size_t>(count), 0);
    }
    live_.emplace(id, std::move(live));
    Tell();
  }

  auto AnyLive() {
    auto at = live_.begin();
    if (!live_.empty()) std::advance(at, Pick(static_cast<int>(live_.size())));
    return at;
  }

  void AdvanceOne() {
    const auto at = AnyLive();
    if (at == live_.end() || at->second.receiving) return;
    auto& [id, live] = *at;
    const int to = std::min(live.capacity, live.length + 1 + Pick(100));
    WriteAll(id, live, live.length, to);
    pool_->Advance(id, live.tokens, to);
    live.length = to;
    Tell();
  }

  void ReceiveOne() {
    const auto at = AnyLive();
    if (at == live_.end() || !at->second.receiving) return;
    auto& [id, live] = *at;
    const int first = live.length / kBlockTokens;
    for (size_t i = 0; i < live.arrived.size(); ++i) {
      if (live.arrived[i] == 2 || Pick(3) == 0) continue;
      finding_.Expect(pool_->MarkReceiving(live.in[i]), "an expected page was refused");
      const int from = (first + static_cast<int>(i)) * kBlockTokens;
      Write(live.in[i].block, live.tokens, from, std::min(live.prompt, from + kBlockTokens));
      live.arrived[i] = 1;
      if (Pick(2) == 0) continue;
      finding_.Expect(pool_->MarkReceived(live.in[i]), "an expected page was not sealed");
      live.arrived[i] = 2;
    }
    const bool complete = std::all_of(live.arrived.begin(), live.arrived.end(), [](int a) { return a == 2; });
    if (!complete && Pick(4) != 0) return;
    pool_->EndFlight(live.in, Flight::kIn);
    if (complete) {
      finding_.Expect(pool_->Attach(id).ok(), "all arrived, and not attached");
      live.length = live.prompt;
    } else {
      finding_.Expect(!pool_->Attach(id).ok(), "attached although pages are missing");
      const auto usable = pool_->AttachArrived(id);
      int leading = 0;
      while (leading < (live.prompt - 1) / kBlockTokens - first && live.arrived[static_cast<size_t>(leading)] == 2) ++leading;
      finding_.Same("usable tokens", usable.value(), (first + leading) * kBlockTokens);
      live.length = usable.value();
    }
    live.in.clear();
    live.receiving = false;
    Tell();
  }

  void FlyOne() {
    const auto at = AnyLive();
    if (at == live_.end() || at->second.receiving || flights_.size() > 8) return;
    const int size = static_cast<int>(pool_->BlockTable(at->first).size());
    const int first = Pick(size);
    Away away{pool_->StartFlight(at->first, first, 1 + Pick(size - first), Flight::kOut).value(), {}};
    for (const BlockLease& lease : away.leases) away.rows.push_back(Rows(lease));
    flights_.push_back(std::move(away));
  }

  std::vector<float> Rows(const BlockLease& lease) {
    std::vector<float> rows;
    for (int row = 0; lease.readable && row < kBlockTokens; ++row) rows.push_back(*Row(lease.block, row));
    return rows;
  }

  void LandOne() {
    if (flights_.empty()) return;
    const size_t at = static_cast<size_t>(Pick(static_cast<int>(flights_.size())));
    for (size_t i = 0; i < flights_[at].leases.size(); ++i) {
      const BlockLease& lease = flights_[at].leases[i];
      finding_.Expect(Rows(lease) == flights_[at].rows[i], "rows changed while they were sent");
    }
    pool_->EndFlight(flights_[at].leases, Flight::kOut);
    flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(at));
    Tell();
  }

  void CloseOne() {
    const auto at = AnyLive();
    if (at == live_.end()) return;
    auto& [id, live] = *at;
    CheckRows(id, live);
    const bool forget_after = Pick(2) == 0;  // a receiver that lets go only after the close
    if (!forget_after) pool_->EndFlight(live.in, Flight::kIn);
    pool_->Close(id, Pick(5) != 0);
    if (forget_after) pool_->EndFlight(live.in, Flight::kIn);
    live_.erase(at);
    Tell();
  }

  // Every row of a sequence holds its token, whoever computed it.
  void CheckRows(SequenceKvId id, const Live& live) {
    const auto table = pool_->BlockTable(id);
    for (int i = 0; i < live.length; ++i) {
      const float seen = *Row(table[static_cast<size_t>(i / kBlockTokens)], i % kBlockTokens);
      finding_.Expect(seen == static_cast<float>(live.tokens[static_cast<size_t>(i)]), "a row holds another sequence's token");
    }
  }

  std::set<int32_t> InUse() {
    std::set<int32_t> used;
    for (const auto& [id, live] : live_) {
      for (const int32_t block : pool_->BlockTable(id)) used.insert(block);
    }
    for (const Away& away : flights_) {
      for (const BlockLease& lease : away.leases) used.insert(lease.block);
    }
    return used;
  }

  // Follows the told changes; they must add up to the list.
  void Tell() {
    const KvChanges changes = pool_->TakeChanges();
    ForEach(changes.stored, [&](const BlockHash& hash) { finding_.Expect(told_.insert(hash).second, "stored twice"); });
    ForEach(changes.removed, [&](const BlockHash& hash) { finding_.Expect(told_.erase(hash) == 1, "removed, never stored"); });
    std::set<BlockHash> listed;
    ForEach(pool_->PrefixHashes(), [&](const BlockHash& hash) { listed.insert(hash); });
    finding_.Expect(listed == told_, "the changes told do not add up to the prefixes listed");
  }
  template <typename F>
  static void ForEach(const std::vector<uint8_t>& hashes, F&& f) {
    for (size_t at = 0; at < hashes.size(); at += sizeof(BlockHash)) {
      BlockHash hash;
      std::memcpy(hash.data(), hashes.data() + at, hash.size());
      f(hash);
    }
  }

  void Compare() {
    finding_.Same("broken", pool_->CheckInvariants(), "");
    finding_.Same("available", pool_->Available(), blocks_ - static_cast<int>(InUse().size()));
    const auto counts = pool_->Counts();
    finding_.Same("sum of states", std::accumulate(counts.begin(), counts.end(), 0), blocks_);
  }

  std::mt19937_64 random_;
  const int blocks_;
  const std::unique_ptr<KvPool> pool_;
  std::map<SequenceKvId, Live> live_;
  std::vector<Away> flights_;
  std::set<BlockHash> told_;
  int hits_ = 0;
  Finding finding_;
};

int PrintStates() {
  std::printf("{");
  for (int from = 0; from < kBlockStates; ++from) {
    std::printf("%s\"%s\":[", from == 0 ? "" : ",", kBlockStateNames[static_cast<size_t>(from)]);
    const char* comma = "";
    for (int to = 0; to < kBlockStates; ++to) {
      if (!MayFollow(static_cast<BlockState>(from), static_cast<BlockState>(to))) continue;
      std::printf("%s\"%s\"", comma, kBlockStateNames[static_cast<size_t>(to)]);
      comma = ",";
    }
    std::printf("]");
  }
  std::printf("}\n");
  return 0;
}

int PrintHashes(const char* model, int count) {
  Tokens tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(i * 2654435761 % 2147483648));
  for (const BlockHash& hash : BlockHashes(model, tokens)) std::printf("%s\n", Hex(hash.data(), hash.size()).c_str());
  return 0;
}

int RunClaims() {
  Claims claims;
  claims.Check("a full block is shared while its sequence still works", PrefixIsShared());
  claims.Check("one token at least is left to compute", OneTokenIsLeft());
  claims.Check("a block equal to a cached one stays private", EqualContentStaysPrivate());
  claims.Check("the longest unused goes first, its last block before its first", OldestGoesFirst());
  claims.Check("a pinned block is not evicted", PinnedIsNotEvicted());
  claims.Check("a sequence that is not kept leaves only what was cached before", DroppedWhenNotKept());
  claims.Check("received blocks are attached, grow and end in the cache", ReceivedThenAttached());
  claims.Check("of an incomplete transfer the leading blocks are kept", ArrivedPartIsKept());
  claims.Check("a closed sequence's blocks wait for their flights", HeldUntilFlightsEnd());
  claims.Check("changes are told net and once", ChangesAreNet());
  claims.Check("bad arguments are refused", BadArgumentsAreRefused());
  return claims.ExitCode();
}

}  // namespace
}  // namespace margay

int main(int argc, char** argv) {
  using namespace margay;
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "states") return PrintStates();
  if (what == "hashes" && argc == 4) return PrintHashes(argv[2], std::atoi(argv[3]));
  if (what == "random" && argc == 4) {
    Claims claims;
    const auto seed = static_cast<uint64_t>(std::atoll(argv[2]));
    claims.Check("random use agrees with a simple model", RandomUse(seed, 20).Run(std::atoi(argv[3])));
    return claims.ExitCode();
  }
  return RunClaims();
}
