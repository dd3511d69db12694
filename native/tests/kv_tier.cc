// What the second tier of the prefix cache promises.
//   kv_tier <empty folder>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <utility>
#include <vector>

#include "claim.h"
#include "kv/block_pool.h"

namespace margay {
namespace {

constexpr KvLayout kLayout{3, 4, KvType::kF32};
using Tokens = std::vector<int32_t>;

struct Tiered {
  Tiered(int blocks, int tier_blocks, const std::string& folder = "") {
    auto made = KvTier::Create({static_cast<uint64_t>(tier_blocks) * kLayout.block_bytes(), folder}, kLayout);
    auto image = PoolImage::Create(kLayout, blocks);
    if (!made.ok() || !image.ok()) std::abort();
    tier = made->get();
    pool = std::make_unique<BlockPool>(std::move(*image), std::move(*made), "model");
  }
  float* Row(SequenceKvId id, int attention, int row) const {
    const int32_t block = pool->BlockTable(id)[static_cast<size_t>(row / kBlockTokens)];
    return reinterpret_cast<float*>(pool->memory().row(attention, block, row % kBlockTokens));
  }
  // Opens, computes what is not cached (every row holds its token), closes. Returns the cached tokens.
  int Run(const Tokens& tokens) {
    const auto count = static_cast<int>(tokens.size());
    const auto opened = pool->Open(tokens, count, KvUse::kCompute);
    if (!opened.ok()) return -1;
    const auto [id, cached] = opened.value();
    for (int attention = 0; attention < kLayout.attentions; ++attention) {
      for (int row = 0; row < count; ++row) {
        const auto value = static_cast<float>(tokens[static_cast<size_t>(row)] + attention);
        if (row < cached) finding.Expect(*Row(id, attention, row) == value, "row " + std::to_string(row) + " is another");
        *Row(id, attention, row) = value;
      }
    }
    pool->Advance(id, tokens, count);
    pool->Close(id, true);
    finding.Same("broken", pool->CheckInvariants(), "");
    return cached;
  }

  Finding finding;
  KvTier* tier = nullptr;
  std::unique_ptr<BlockPool> pool;
};

Tokens Count(int from, int count) {
  Tokens tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

std::string ComesBack(const std::string& folder) {
  Tiered tiered(4, 8, folder);
  Finding& finding = tiered.finding;
  finding.Expect(folder.empty() || std::filesystem::is_empty(folder), "the file has a name");
  tiered.Run(Count(0, 192));
  tiered.pool->TakeChanges();
  tiered.Run(Count(5000, 256));  // needs the whole pool
  finding.Expect(tiered.pool->TakeChanges().removed.empty(), "what is in the second tier was told as removed");
  finding.Same("bytes", tiered.pool->TierCounters().bytes, 3 * kLayout.block_bytes());
  finding.Same("cached tokens", tiered.Run(Count(0, 193)), 192);
  const CacheCounters counters = tiered.pool->TierCounters();
  finding.Same("tokens brought back", counters.hit_tokens, uint64_t{192});
  finding.Same("refused", counters.refused_blocks, uint64_t{0});
  return finding.what();
}

std::string DamagedIsRefused() {
  Tiered tiered(4, 8);
  Finding& finding = tiered.finding;
  tiered.Run(Count(0, 192));
  const BlockHash first = HashNext(HashRoot("model"), Count(0, 64).data());
  const BlockHash second = HashNext(first, Count(64, 64).data());
  tiered.Run(Count(5000, 256));
  std::byte* copy = tiered.tier->Find(second);
  if (copy == nullptr) return "the second block is not in the second tier";
  copy[kLayout.block_bytes() - 1] ^= std::byte{4};
  tiered.pool->TakeChanges();
  finding.Same("cached tokens", tiered.Run(Count(0, 193)), 64);
  finding.Same("refused", tiered.pool->TierCounters().refused_blocks, uint64_t{1});
  finding.Same("cached when computed anew", tiered.Run(Count(0, 193)), 192);
  return finding.what();
}

std::string BudgetIsKept() {
  Tiered tiered(2, 3);
  Finding& finding = tiered.finding;
  std::vector<std::vector<uint8_t>> removed;
  for (int i = 0; i < 8; ++i) {
    tiered.Run(Count(i * 1000, 128));
    removed.push_back(tiered.pool->TakeChanges().removed);
    finding.Expect(tiered.pool->TierCounters().bytes <= 3 * kLayout.block_bytes(), "beyond the budget");
  }
  finding.Same("told as removed once both are full", removed.back().size(), 2 * sizeof(BlockHash));
  finding.Same("known", tiered.pool->PrefixHashes().size(), 5 * sizeof(BlockHash));
  finding.Same("evicted", tiered.pool->TierCounters().evicted_blocks, uint64_t{11});
  return finding.what();
}

std::string GrowthSavesToo() {
  Tiered tiered(4, 8);
  Finding& finding = tiered.finding;
  tiered.Run(Count(0, 192));
  const auto opened = tiered.pool->Open(Count(7000, 10), 10, KvUse::kCompute);
  finding.Expect(tiered.pool->Grow(opened.value().id, 256).ok(), "did not grow");
  tiered.pool->Close(opened.value().id, false);
  finding.Same("cached tokens", tiered.Run(Count(0, 193)), 192);
  finding.Same("tokens brought back", tiered.pool->TierCounters().hit_tokens, uint64_t{192});
  return finding.what();
}

std::string ReceiverFindsThem() {
  Tiered tiered(4, 8);
  Finding& finding = tiered.finding;
  const Tokens tokens = Count(0, 140);
  tiered.Run(Count(0, 128));
  tiered.Run(Count(5000, 256));
  const OpenedKv opened = *tiered.pool->Open(tokens, 200, KvUse::kReceive);
  finding.Same("cached tokens", opened.cached_tokens, 128);
  const auto leases = *tiered.pool->StartFlight(opened.id, 2, 1, Flight::kIn);
  finding.Expect(tiered.pool->MarkReceiving(leases[0]) && tiered.pool->MarkReceived(leases[0]), "an arrival was refused");
  tiered.pool->EndFlight(leases, Flight::kIn);
  finding.Expect(tiered.pool->Attach(opened.id).ok(), "complete, and not attached");
  finding.Same("row", *tiered.Row(opened.id, 2, 100), 102.0f);
  finding.Same("broken", tiered.pool->CheckInvariants(), "");
  tiered.pool->Close(opened.id, true);
  return finding.what();
}

std::string BadOptionsAreRefused() {
  Finding finding;
  const auto small = KvPool::Create(kLayout, 4, "m", {kLayout.block_bytes() - 1, ""});
  finding.Expect(!small.ok() && small.status().message().find("kvTierBytes") != std::string::npos, "a tier of no block");
  finding.Expect(!KvPool::Create(kLayout, 4, "m", {1 << 20, "/proc/none"}).ok(), "a folder that cannot be");
  return finding.what();
}

}  // namespace
}  // namespace margay

int main(int argc, char** argv) {
  using namespace margay;
  if (argc != 2) return 2;
  Claims claims;
  claims.Check("evicted blocks come back from memory", ComesBack(""));
  claims.Check("evicted blocks come back from a file without a name", ComesBack(argv[1]));
  claims.Check("a damaged block is refused, counted and computed anew", DamagedIsRefused());
  claims.Check("the budget is kept, and what is lost is told", BudgetIsKept());
  claims.Check("blocks that growth evicts are saved too", GrowthSavesToo());
  claims.Check("a sequence that waits for pages begins with blocks of the second tier", ReceiverFindsThem());
  claims.Check("bad options are refused", BadOptionsAreRefused());
  return claims.ExitCode();
}
