#include "kv/block_pool.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace margay {
namespace {

// Bytes that one call moves between pool and second tier at most: the engine waits for it. What would be more is lost,
// or computed.
constexpr size_t kMostMovedBytes = size_t{128} << 20;

int MostMoved(const KvLayout& layout) {
  return static_cast<int>(std::max<size_t>(kMostMovedBytes / layout.block_bytes(), 1));
}

}  // namespace

// The only place that changes a state (B1).
void BlockPool::Set(int32_t block, BlockState to) {
  Block& entry = At(block);
  if (entry.state == to) return;
  if (!MayFollow(entry.state, to) && forbidden_.empty()) {
    forbidden_ =
        "block " + std::to_string(block) + " went from " + BlockStateName(entry.state) + " to " + BlockStateName(to);
  }
  --counts_[static_cast<size_t>(entry.state)];
  ++counts_[static_cast<size_t>(to)];
  entry.state = to;
}

// Others may find the full block, unless its content is known already: then it stays private.
void BlockPool::Publish(const Sequence& sequence, int logical) {
  const int32_t block = sequence.table[static_cast<size_t>(logical)];
  At(block).hash = sequence.hashes[static_cast<size_t>(logical)];
  if (!index_.Insert(At(block).hash, block)) return;
  At(block).published = true;
  texts_.List(block, HashBefore(sequence, logical), kBlockTokens);
  ReplaceBeginning(block);
}

// The rows of a last block that is not full: the next turn of a conversation goes on from a copy of them.
void BlockPool::PublishTail(const Sequence& sequence, int logical) {
  const int32_t block = sequence.table[static_cast<size_t>(logical)];
  const int rows = sequence.length - logical * kBlockTokens;
  const BlockHash& parent = HashBefore(sequence, logical);
  if (texts_.Longest(parent, texts_.Of(block, rows)).rows == rows) return;
  if (At(block).state == BlockState::kFilling) Set(block, BlockState::kSealed);
  At(block).published = true;
  texts_.List(block, parent, rows);
  ReplaceBeginning(block);
}

// A tail that this block begins with is of no more use.
void BlockPool::ReplaceBeginning(int32_t block) {
  const int32_t tail = texts_.Beginning(block);
  if (tail < 0 || texts_.rows(tail) == kBlockTokens || !At(tail).idle()) return;
  evictable_.erase(KeyOf(tail));
  Free(tail);
}

void BlockPool::Unpublish(int32_t block) {
  if (!At(block).published) return;
  if (texts_.rows(block) == kBlockTokens) index_.Erase(At(block).hash);
  texts_.Unlist(block);
  At(block).published = false;
}

void BlockPool::Free(int32_t block) {
  Block& entry = At(block);
  Unpublish(block);
  Set(block, BlockState::kFree);
  ++entry.generation;
  // Before any new row is written: a reader that still copies sees the change after its copy.
  image_->head()->generations()[block].store(entry.generation, std::memory_order_seq_cst);
  free_.push_back(block);
}

// To its first user; the caller took it off the free list.
void BlockPool::Lease(int32_t block, int depth) {
  Set(block, BlockState::kReserved);
  At(block).refs = 1;
  At(block).depth = depth;
}

// What becomes of a block that lost a user or a flight.
void BlockPool::Settle(int32_t block) {
  Block& entry = At(block);
  if (entry.state == BlockState::kSending && entry.out == 0 && entry.refs > 0) Set(block, BlockState::kSealed);
  if (!entry.idle()) return;
  if (!entry.published) return Free(block);
  Set(block, BlockState::kCached);
  evictable_.insert(KeyOf(block));
}

BlockPool::Block* BlockPool::Held(const BlockLease& lease) {
  if (lease.block < 0 || lease.block >= image_->blocks()) return nullptr;
  Block& block = At(lease.block);
  return block.generation == lease.generation && block.state != BlockState::kFree ? &block : nullptr;
}

std::span<const int32_t> BlockPool::BlockTable(SequenceKvId id) {
  std::lock_guard lock(mutex_);
  const Sequence* sequence = Find(id);
  return sequence == nullptr ? std::span<const int32_t>() : std::span<const int32_t>(sequence->table);
}

void BlockPool::LearnHashes(Sequence& sequence, std::span<const int32_t> tokens, int blocks) {
  for (int i = static_cast<int>(sequence.hashes.size()); i < blocks; ++i) {
    const BlockHash& previous = i == 0 ? root_ : sequence.hashes.back();
    sequence.hashes.push_back(HashNext(previous, tokens.data() + static_cast<size_t>(i) * kBlockTokens));
  }
}

// All rows of a block are there: it is readable.
void BlockPool::Seal(const Sequence& sequence, int logical) {
  const int32_t block = sequence.table[static_cast<size_t>(logical)];
  Set(block, BlockState::kSealed);
  Publish(sequence, logical);
  if (At(block).out > 0) Set(block, BlockState::kSending);
}

void BlockPool::Advance(SequenceKvId id, std::span<const int32_t> tokens, int length) {
  std::lock_guard lock(mutex_);
  Sequence* sequence = Find(id);
  if (sequence == nullptr || sequence->receiving()) return;
  const int limit = std::min(static_cast<int>(tokens.size()), static_cast<int>(sequence->table.size()) * kBlockTokens);
  length = std::min(length, limit);
  if (length <= sequence->length) return;
  LearnHashes(*sequence, tokens, length / kBlockTokens);
  for (int i = sequence->length / kBlockTokens; i < BlocksFor(length); ++i) {
    const int from = std::max(sequence->length, i * kBlockTokens), to = std::min(length, (i + 1) * kBlockTokens);
    const int32_t block = sequence->table[static_cast<size_t>(i)];
    Set(block, BlockState::kFilling);
    texts_.Write(block, from % kBlockTokens, tokens.subspan(static_cast<size_t>(from), static_cast<size_t>(to - from)));
    if ((i + 1) * kBlockTokens <= length) Seal(*sequence, i);
  }
  sequence->length = length;
}

void BlockPool::Close(SequenceKvId id, bool keep) {
  std::lock_guard lock(mutex_);
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  const Sequence sequence = std::move(found->second);
  sequences_.erase(found);
  ++clock_;
  for (int i = 0; i < static_cast<int>(sequence.table.size()); ++i) {
    const int32_t block = sequence.table[static_cast<size_t>(i)];
    Block& entry = At(block);
    --entry.refs;
    entry.used = clock_;
    const bool written = entry.state == BlockState::kFilling || entry.state == BlockState::kAttached;
    const bool tail = i == sequence.length / kBlockTokens && sequence.length % kBlockTokens != 0;
    if (keep && tail && written) PublishTail(sequence, i);
    // A partial last block whose rows are still being sent.
    if (entry.state == BlockState::kFilling && entry.out > 0) Set(block, BlockState::kSealed);
    if (entry.state == BlockState::kSealed && entry.out > 0) Set(block, BlockState::kSending);
    const bool own = i >= sequence.cached_blocks;
    if (own && !keep && entry.refs == 0) Unpublish(block);
    Settle(block);
  }
}

std::array<int, kBlockStates> BlockPool::Counts() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

int BlockPool::Available() const {
  std::lock_guard lock(mutex_);
  return static_cast<int>(free_.size() + evictable_.size());
}

KvChanges BlockPool::TakeChanges() {
  std::lock_guard lock(mutex_);
  return index_.Take();
}

std::vector<uint8_t> BlockPool::PrefixHashes() const {
  std::lock_guard lock(mutex_);
  return index_.All();
}

CacheCounters BlockPool::PoolCounters() const {
  std::lock_guard lock(mutex_);
  CacheCounters counters = pool_counters_;
  counters.bytes = evictable_.size() * image_->memory().layout.block_bytes();
  return counters;
}

CacheCounters BlockPool::TierCounters() const {
  if (tier_ == nullptr) return {};
  const KvTier::Counters held = tier_->counters();
  std::lock_guard lock(mutex_);
  CacheCounters counters = tier_counters_;
  counters.evicted_blocks = held.evicted;
  counters.refused_blocks = held.refused;
  counters.bytes = held.bytes;
  return counters;
}

BlockPool::BlockPool(std::unique_ptr<PoolImage> image, std::unique_ptr<KvTier> tier, const std::string& model_hash)
    : image_(std::move(image)),
      tier_(std::move(tier)),
      most_moved_(MostMoved(image_->memory().layout)),
      root_(HashRoot(model_hash)),
      blocks_(static_cast<size_t>(image_->blocks())),
      texts_(image_->blocks()) {
  counts_[static_cast<size_t>(BlockState::kFree)] = image_->blocks();
  for (int32_t block = image_->blocks(); block-- > 0;) free_.push_back(block);
}

Result<std::unique_ptr<KvPool>> KvPool::Create(const KvLayout& layout, int blocks, const std::string& model_hash,
                                               const KvTierOptions& second_tier) {
  Result<std::unique_ptr<PoolImage>> image = PoolImage::Create(layout, blocks);
  if (!image.ok()) return image.status();
  std::unique_ptr<KvTier> tier;
  if (second_tier.bytes > 0) {
    Result<std::unique_ptr<KvTier>> made = KvTier::Create(second_tier, layout);
    if (!made.ok()) return made.status();
    tier = std::move(*made);
  }
  return std::unique_ptr<KvPool>(std::make_unique<BlockPool>(std::move(*image), std::move(tier), model_hash));
}

}  // namespace margay
