// The pool behind KvPool: who has which block, which blocks others may find, and which go first when room is needed.
//
//   block_pool.cc        states, advancing, closing
//   block_opening.cc     opening and growing, the second tier
//   block_arrival.cc     bytes in flight
//   block_invariants.cc  the walk over everything
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "kv/block_texts.h"
#include "kv/kv_pool.h"
#include "kv/kv_tier.h"
#include "kv/pool_image.h"
#include "kv/prefix_index.h"

namespace margay {

inline int BlocksFor(int tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

class BlockPool final : public KvPool {
 public:
  // `tier`: null: none.
  BlockPool(std::unique_ptr<PoolImage> image, std::unique_ptr<KvTier> tier, const std::string& model_hash);

  KvMemory memory() const override { return image_->memory(); }
  int memory_fd() const override { return image_->fd(); }

  Result<OpenedKv> Open(std::span<const int32_t> tokens, int capacity, KvUse use) override;
  Status Grow(SequenceKvId id, int capacity) override;
  std::span<const int32_t> BlockTable(SequenceKvId id) override;
  void Advance(SequenceKvId id, std::span<const int32_t> tokens, int length) override;
  Status Attach(SequenceKvId id) override;
  Result<int> AttachArrived(SequenceKvId id) override;
  void Close(SequenceKvId id, bool keep) override;
  Result<std::vector<BlockLease>> StartFlight(SequenceKvId id, int first, int count, Flight way) override;
  void EndFlight(std::span<const BlockLease> leases, Flight way) override;
  bool MarkReceiving(const BlockLease& lease) override { return MarkArrival(lease, BlockState::kReceiving); }
  bool MarkReceived(const BlockLease& lease) override { return MarkArrival(lease, BlockState::kSealed); }

  std::array<int, kBlockStates> Counts() const override;
  int Available() const override;
  CacheCounters PoolCounters() const override;
  CacheCounters TierCounters() const override;
  KvChanges TakeChanges() override;
  std::vector<uint8_t> PrefixHashes() const override;
  std::string CheckInvariants() const override;

 private:
  struct Block {
    BlockState state = BlockState::kFree;
    bool published = false;  // listed in `texts_`; a full one also in `index_`, under `hash`
    uint32_t generation = 0;
    int refs = 0;  // sequences that have it in their table
    int out = 0;   // flights, and copies of its rows
    int in = 0;
    BlockHash hash{};
    // Order of eviction: longest unused first, of one sequence the last block first, so that no block outlives what its
    // hash is chained to.
    uint64_t used = 0;
    int depth = 0;

    bool idle() const { return refs == 0 && out == 0 && in == 0; }
  };
  struct Sequence {
    KvUse use = KvUse::kCompute;
    bool attached = false;
    int prompt_tokens = 0;
    int cached_blocks = 0;  // leading blocks found in the cache, shared
    int cached_tokens = 0;  // of those, and rows copied into the next block
    int length = 0;
    std::vector<int32_t> table;
    std::vector<BlockHash> hashes;  // of the leading full blocks known so far

    bool receiving() const { return use == KvUse::kReceive && !attached; }
  };
  // Leading cached blocks of a prompt.
  struct Found {
    int idle = 0;     // in the pool, used by nobody
    int in_tier = 0;  // in the second tier alone
  };
  // Between pool and second tier.
  struct Moves {
    struct Out {
      BlockHash hash;
      int32_t block;
    };
    std::vector<Out> out;   // evicted, longest unused first; their rows are still there
    std::vector<int> back;  // logical blocks of the sequence
  };
  using EvictionKey = std::tuple<uint64_t, int, int32_t>;  // used, -depth, block

  Block& At(int32_t block) { return blocks_[static_cast<size_t>(block)]; }
  const Block& At(int32_t block) const { return blocks_[static_cast<size_t>(block)]; }
  Sequence* Find(SequenceKvId id) {
    const auto found = sequences_.find(id);
    return found == sequences_.end() ? nullptr : &found->second;
  }
  Block* Held(const BlockLease& lease);
  const BlockHash& HashBefore(const Sequence& sequence, int logical) const {
    return logical == 0 ? root_ : sequence.hashes[static_cast<size_t>(logical) - 1];
  }

  void Set(int32_t block, BlockState to);
  void Free(int32_t block);
  void Lease(int32_t block, int depth);
  int32_t TakeFree(Moves* moves);
  void Settle(int32_t block);
  void LearnHashes(Sequence& sequence, std::span<const int32_t> tokens, int blocks);

  Found FindCached(Sequence* sequence) const;
  BlockTexts::Match FindBegun(const Sequence& sequence, std::span<const int32_t> tokens) const;
  void Hold(int32_t block);
  void Release(int32_t block);
  void CopyRows(BlockTexts::Match from, int32_t to) const;
  void Save(const Moves& moves);
  bool BringBack(const Sequence& sequence, std::span<const int> logical);
  void CountOpened(const Sequence& sequence, int brought_back);

  void Publish(const Sequence& sequence, int logical);
  void PublishTail(const Sequence& sequence, int logical);
  void ReplaceBeginning(int32_t block);
  void Unpublish(int32_t block);
  void Seal(const Sequence& sequence, int logical);
  void AttachBlocks(Sequence& sequence, int blocks);
  bool MarkArrival(const BlockLease& lease, BlockState to);
  EvictionKey KeyOf(int32_t block) const { return {At(block).used, -At(block).depth, block}; }

  std::string CheckBlock(int32_t block, int refs, int times_free) const;

  const std::unique_ptr<PoolImage> image_;
  const std::unique_ptr<KvTier> tier_;
  const int most_moved_;  // blocks of one call
  const BlockHash root_;
  mutable std::mutex mutex_;
  std::vector<Block> blocks_;
  BlockTexts texts_;
  std::array<int, kBlockStates> counts_{};
  std::vector<int32_t> free_;
  std::set<EvictionKey> evictable_;  // cached and idle
  PrefixIndex index_;
  std::unordered_map<SequenceKvId, Sequence> sequences_;
  SequenceKvId next_id_ = 1;
  uint64_t clock_ = 0;
  CacheCounters pool_counters_, tier_counters_;
  std::string forbidden_;  // first transition that lifecycle forbids, for CheckInvariants
};

}  // namespace margay
