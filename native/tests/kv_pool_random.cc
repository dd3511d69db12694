// Random use of the KV pool against a simple model, every invariant walked after every operation.
//   kv_pool_random <seed> <operations>
// Twice: the pool alone, and with a second tier in which copies get damaged.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "block_hashes.h"
#include "claim.h"
#include "kv/block_pool.h"

namespace margay {
namespace {

constexpr KvLayout kLayout{2, 4, KvType::kF32};
using Tokens = std::vector<int32_t>;

std::unique_ptr<KvTier> NewTier(int blocks) {
  if (blocks == 0) return nullptr;
  auto tier = KvTier::Create({static_cast<uint64_t>(blocks) * kLayout.block_bytes(), ""}, kLayout);
  if (!tier.ok()) std::abort();
  return std::move(*tier);
}

int CountOf(const KvPool& pool, BlockState state) { return pool.Counts()[static_cast<size_t>(state)]; }

// A model of the pool in sets and maps: what is in use by whom, and what every row must hold.
class RandomUse {
 public:
  RandomUse(uint64_t seed, int blocks, int tier_blocks) : random_(seed), blocks_(blocks) {
    auto image = PoolImage::Create(kLayout, blocks);
    if (!image.ok()) std::abort();
    auto tier = NewTier(tier_blocks);
    tier_ = tier.get();
    pool_ = std::make_unique<BlockPool>(std::move(*image), std::move(tier), "model");
  }

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
    if (tier_ != nullptr) {
      const CacheCounters tier = pool_->TierCounters();
      finding_.Expect(tier.hit_tokens > static_cast<uint64_t>(operations), "hardly any block came back");
      finding_.Expect(tier.refused_blocks > 0, "nothing damaged was met: the run shows nothing");
      finding_.Expect(tier.bytes <= static_cast<uint64_t>(tier_->capacity()) * kLayout.block_bytes(), "beyond the budget");
    }
    finding_.Expect(begun_ > operations / 100, "hardly any row was copied: the run shows nothing");
    return finding_.what();
  }

 private:
  struct Live {
    Tokens tokens;  // longer than the prompt: what decoding will append
    int prompt = 0;
    int capacity = 0;
    int length = 0;
    int copied = 0;  // rows at its opening, beyond the shared blocks
    bool receiving = false;
    std::vector<BlockLease> in;
    std::vector<int> arrived;  // per expected block: 0 nothing, 1 receiving, 2 received
  };
  struct Away {
    std::vector<BlockLease> leases;
    std::vector<std::vector<float>> rows;  // of readable leases, as they were at take-off
  };

  static int BlocksFor(int tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }
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
    if (dice < 91) return DamageOne();
    CloseOne();
  }

  void DamageOne() {
    if (tier_ == nullptr || told_.empty()) return;
    const BlockHash& hash = *std::next(told_.begin(), Pick(static_cast<int>(told_.size())));
    std::byte* copy = tier_->Find(hash);
    if (copy == nullptr) return;
    copy[Pick(static_cast<int>(kLayout.block_bytes()))] ^= std::byte{1};
    damaged_.insert(hash);
  }

  void OpenOne() {
    Live live;
    // Few families of prompts that branch late: prefixes meet.
    const int family = Pick(4), branch = Pick(3) * kBlockTokens + Pick(2) * 7;
    live.prompt = 1 + Pick(5 * kBlockTokens);
    live.capacity = live.prompt + Pick(kBlockTokens * 2);
    for (int i = 0; i < live.capacity; ++i)
      live.tokens.push_back(i < branch ? family * 1000 + i : family * 1000 + i + 500);
    live.receiving = Pick(3) == 0;
    const std::span<const int32_t> prompt(live.tokens.data(), static_cast<size_t>(live.prompt));

    int hits = 0;
    const auto hashes = BlockHashes("model", prompt);
    std::set<int32_t> used = InUse();
    const int available = blocks_ - static_cast<int>(used.size());
    while (hits < (live.prompt - 1) / kBlockTokens && told_.contains(hashes[static_cast<size_t>(hits)])) ++hits;
    const int begun = MostShared(live, hits);
    const bool tight = blocks_ - static_cast<int>(used.size()) <= BlocksFor(live.capacity);
    const auto opened = pool_->Open(prompt, live.capacity, live.receiving ? KvUse::kReceive : KvUse::kCompute);
    if (!opened.ok()) {
      finding_.Expect(opened.status().code() == Code::kNoBlocks, "refused: " + opened.status().message());
      finding_.Expect((live.capacity + kBlockTokens - 1) / kBlockTokens > available - hits,
                      "refused, and there was room");
      return;
    }
    const SequenceKvId id = opened.value().id;
    const int seen = opened.value().cached_tokens / kBlockTokens;
    const auto damaged = [&](const BlockHash& hash) { return damaged_.contains(hash); };
    const bool any_damaged = std::any_of(hashes.begin(), hashes.begin() + hits, damaged);
    if (seen < hits && any_damaged) {
      finding_.Expect(damaged(hashes[static_cast<size_t>(seen)]), "a block that was never damaged was not used");
      hits = seen;
    }
    const int copied = opened.value().cached_tokens - hits * kBlockTokens;
    finding_.Expect(copied >= 0 && copied <= kBlockTokens && opened.value().cached_tokens < live.prompt,
                    std::to_string(opened.value().cached_tokens) + " tokens are cached");
    finding_.Expect(copied >= begun || tight || tier_ != nullptr, "rows of a cached block were not used");
    hits_ += hits;
    begun_ += copied > 0 ? 1 : 0;
    live.copied = copied;
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
    Remember(live);
    live_.emplace(id, std::move(live));
    Tell();
  }

  // Rows that some full block in the cache shares with what follows the first `hits` blocks of a prompt.
  int MostShared(const Live& live, int hits) {
    int most = 0;
    for (const BlockHash& hash : told_) {
      const Tokens& past = full_[hash];
      if (static_cast<int>(past.size()) != (hits + 1) * kBlockTokens) continue;
      const int same = static_cast<int>(std::mismatch(past.begin(), past.end(), live.tokens.begin(), live.tokens.end()).first - past.begin());
      most = std::max(most, std::min(same, live.prompt - 1) - hits * kBlockTokens);
    }
    return most;
  }
  void Remember(const Live& live) {
    const auto hashes = BlockHashes("model", live.tokens);
    for (size_t i = 0; i < hashes.size(); ++i) {
      full_.try_emplace(hashes[i], live.tokens.begin(), live.tokens.begin() + static_cast<std::ptrdiff_t>((i + 1) * kBlockTokens));
    }
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
    if (Pick(4) == 0) GrowOne(id, live);
    const int to = std::min(live.capacity, live.length + 1 + Pick(100));
    WriteAll(id, live, live.length, to);
    pool_->Advance(id, live.tokens, to);
    live.length = to;
    Tell();
  }

  void GrowOne(SequenceKvId id, Live& live) {
    const int more = 1 + Pick(100), blocks = BlocksFor(live.capacity + more) - BlocksFor(live.capacity);
    const bool room = blocks <= blocks_ - static_cast<int>(InUse().size());
    const auto before = pool_->BlockTable(id);
    finding_.Expect(pool_->Grow(id, live.capacity + more).ok() == room, "growth and room do not agree");
    finding_.Expect(pool_->BlockTable(id).data() == before.data(), "a table moved");
    if (!room) return;
    const int family = live.tokens.front() / 1000;
    for (int i = 0; i < more; ++i) live.tokens.push_back(family * 1000 + live.capacity++ + 500);
    Remember(live);
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
      Write(live.in[i].block, live.tokens, std::max(from, live.length), std::min(live.prompt, from + kBlockTokens));
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
      while (leading < (live.prompt - 1) / kBlockTokens - first && live.arrived[static_cast<size_t>(leading)] == 2)
        ++leading;
      const bool untouched = live.arrived[0] == 0;
      finding_.Same("usable tokens", usable.value(), (first + leading) * kBlockTokens + (untouched ? live.copied : 0));
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
      finding_.Expect(seen == static_cast<float>(live.tokens[static_cast<size_t>(i)]),
                      "a row holds another sequence's token");
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
    ForEach(changes.removed,
            [&](const BlockHash& hash) { finding_.Expect(told_.erase(hash) == 1, "removed, never stored"); });
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
  std::unique_ptr<KvPool> pool_;
  KvTier* tier_ = nullptr;       // the pool's
  std::set<BlockHash> damaged_;  // that were, once, in the second tier
  std::map<SequenceKvId, Live> live_;
  std::vector<Away> flights_;
  std::set<BlockHash> told_;
  std::map<BlockHash, Tokens> full_;  // what the hash of every full block stands for, its past included
  int hits_ = 0, begun_ = 0;
  Finding finding_;
};

}  // namespace
}  // namespace margay

int main(int argc, char** argv) {
  using namespace margay;
  if (argc != 3) return 2;
  Claims claims;
  const auto seed = static_cast<uint64_t>(std::atoll(argv[1]));
  claims.Check("random use agrees with a simple model", RandomUse(seed, 20, 0).Run(std::atoi(argv[2])));
  claims.Check("and with a second tier, damaged now and then", RandomUse(seed, 16, 12).Run(std::atoi(argv[2])));
  return claims.ExitCode();
}
