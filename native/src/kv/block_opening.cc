// Blocks for new and growing sequences: found in the cache, brought back from the second tier, or taken from it.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kv/block_pool.h"

namespace margay {
namespace {

Status NoBlocks(int needed, int available) {
  return {Code::kNoBlocks, std::to_string(needed) + " blocks needed, " + std::to_string(available) + " available"};
}

}  // namespace

// Leading blocks that others have computed. Those of the second tier get their block later, and are -1 until then.
BlockPool::Found BlockPool::FindCached(Sequence* sequence) const {
  const int most = (sequence->prompt_tokens - 1) / kBlockTokens;  // one token at least is computed
  Found found;
  for (int i = 0; i < most; ++i) {
    const BlockHash& hash = sequence->hashes[static_cast<size_t>(i)];
    const int32_t block = index_.Find(hash);
    if (block < 0 && (!index_.InTier(hash) || found.in_tier == most_moved_)) break;
    if (block < 0) ++found.in_tier;
    if (block >= 0 && At(block).idle()) ++found.idle;
    sequence->table.push_back(block);
  }
  sequence->cached_blocks = static_cast<int>(sequence->table.size());
  return found;
}

// The block that shares most rows with what follows the shared blocks.
BlockTexts::Match BlockPool::FindBegun(const Sequence& sequence, std::span<const int32_t> tokens) const {
  const std::span<const int32_t> rest = tokens.subspan(static_cast<size_t>(sequence.cached_blocks) * kBlockTokens);
  const size_t most = std::min(rest.size() - 1, static_cast<size_t>(kBlockTokens));
  return texts_.Longest(HashBefore(sequence, sequence.cached_blocks), rest.first(most));
}

// Against eviction and reuse, until it is released.
void BlockPool::Hold(int32_t block) {
  if (At(block).idle()) evictable_.erase(KeyOf(block));
  ++At(block).out;
}

void BlockPool::Release(int32_t block) {
  --At(block).out;
  At(block).used = ++clock_;
  Settle(block);
}

void BlockPool::CopyRows(BlockTexts::Match from, int32_t to) const {
  const KvMemory memory = image_->memory();
  const size_t bytes = static_cast<size_t>(from.rows) * memory.layout.row_bytes();
  for (int attention = 0; attention < memory.layout.attentions; ++attention) {
    std::memcpy(memory.page(attention, to), memory.page(attention, from.block), bytes);
  }
}

Result<OpenedKv> BlockPool::Open(std::span<const int32_t> tokens, int capacity, KvUse use) {
  if (tokens.empty() || capacity < static_cast<int>(tokens.size())) {
    return Status(Code::kBadArgument, "a sequence needs a token, and capacity for all of them");
  }
  Sequence sequence;
  sequence.use = use;
  sequence.prompt_tokens = static_cast<int>(tokens.size());
  sequence.table.reserve(blocks_.size());  // so that it never moves
  LearnHashes(sequence, tokens, sequence.prompt_tokens / kBlockTokens);

  std::unique_lock lock(mutex_);
  const Found found = FindCached(&sequence);
  const int needed = BlocksFor(capacity) - sequence.cached_blocks + found.in_tier;
  const int available = static_cast<int>(free_.size() + evictable_.size()) - found.idle;
  if (needed > available) return NoBlocks(needed, available);
  for (const int32_t block : sequence.table) {
    if (block < 0) continue;
    if (At(block).idle()) evictable_.erase(KeyOf(block));
    ++At(block).refs;
  }
  BlockTexts::Match begun = FindBegun(sequence, tokens);
  // The last block to be had may be the one to copy from.
  if (begun.rows > 0 && At(begun.block).idle() && needed == available) begun = {};
  if (begun.rows > 0) Hold(begun.block);

  Moves moves;
  sequence.table.resize(static_cast<size_t>(BlocksFor(capacity)), -1);
  for (int i = 0; i < static_cast<int>(sequence.table.size()); ++i) {
    int32_t& block = sequence.table[static_cast<size_t>(i)];
    if (block >= 0) continue;
    block = TakeFree(&moves);
    Lease(block, i);
    if (i < sequence.cached_blocks) moves.back.push_back(i);
    if (i >= BlocksFor(sequence.prompt_tokens)) continue;
    const std::span<const int32_t> rest = tokens.subspan(static_cast<size_t>(i) * kBlockTokens);
    texts_.Write(block, 0, rest.first(std::min<size_t>(rest.size(), kBlockTokens)));
  }
  sequence.cached_tokens = sequence.length = sequence.cached_blocks * kBlockTokens + begun.rows;
  const OpenedKv opened{next_id_++, sequence.cached_tokens};
  const Sequence& put = sequences_.emplace(opened.id, std::move(sequence)).first->second;

  // Nobody else touches these blocks, and references to sequences hold until they are closed.
  lock.unlock();
  for (const int i : moves.back) tier_->Touch(put.hashes[static_cast<size_t>(i)]);
  Save(moves);
  const bool whole = BringBack(put, moves.back);
  if (begun.rows > 0) CopyRows(begun, put.table[static_cast<size_t>(put.cached_blocks)]);
  lock.lock();
  if (begun.rows > 0) Release(begun.block);
  if (whole) {
    CountOpened(put, static_cast<int>(moves.back.size()));
    return opened;
  }
  // What was damaged is forgotten: the next look ends before it.
  lock.unlock();
  Close(opened.id, true);
  return Open(tokens, capacity, use);
}

void BlockPool::CountOpened(const Sequence& sequence, int brought_back) {
  const auto from_tier = static_cast<uint64_t>(brought_back) * kBlockTokens;
  const auto cached = static_cast<uint64_t>(sequence.cached_tokens);
  const auto missed = static_cast<uint64_t>(sequence.prompt_tokens) - cached;
  pool_counters_.hit_tokens += cached - from_tier;
  pool_counters_.missed_tokens += missed + from_tier;
  if (tier_ == nullptr) return;
  tier_counters_.hit_tokens += from_tier;
  tier_counters_.missed_tokens += missed;
}

// Off the free list; the longest unused cached block goes there first when it is empty. There must be one of either.
int32_t BlockPool::TakeFree(Moves* moves) {
  if (free_.empty()) {
    const int32_t oldest = std::get<2>(*evictable_.begin());
    evictable_.erase(evictable_.begin());
    ++pool_counters_.evicted_blocks;
    if (tier_ != nullptr && texts_.rows(oldest) == kBlockTokens) moves->out.push_back({At(oldest).hash, oldest});
    Free(oldest);
  }
  const int32_t block = free_.back();
  free_.pop_back();
  return block;
}

// The rows that evicted blocks still hold; of too many the last, which were used last. Called without the mutex.
void BlockPool::Save(const Moves& moves) {
  const size_t dropped = moves.out.size() - std::min(moves.out.size(), static_cast<size_t>(most_moved_));
  for (const Moves::Out& out : std::span(moves.out).subspan(dropped)) {
    const std::optional<BlockHash> gone = tier_->Save(out.hash, image_->memory(), out.block);
    std::lock_guard lock(mutex_);
    index_.SetTier(out.hash, true);
    if (gone.has_value()) index_.SetTier(*gone, false);
  }
}

// False when a block was damaged; those that were not are in the cache. Called without the mutex.
bool BlockPool::BringBack(const Sequence& sequence, std::span<const int> logical) {
  bool whole = true;
  for (const int i : logical) {
    const int32_t block = sequence.table[static_cast<size_t>(i)];
    const BlockHash& hash = sequence.hashes[static_cast<size_t>(i)];
    const bool good = tier_->Load(hash, image_->memory(), block);
    std::lock_guard lock(mutex_);
    if (good) {
      Set(block, BlockState::kReceiving);
      Set(block, BlockState::kSealed);
      Publish(sequence, i);
    } else {
      index_.SetTier(hash, false);
      whole = false;
    }
  }
  return whole;
}

Status BlockPool::Grow(SequenceKvId id, int capacity) {
  Moves moves;
  {
    std::lock_guard lock(mutex_);
    Sequence* sequence = Find(id);
    if (sequence == nullptr) return {Code::kStaleHandle, "no such KV sequence"};
    const int have = static_cast<int>(sequence->table.size());
    const int total = BlocksFor(std::max(capacity, 0));
    const int available = static_cast<int>(free_.size() + evictable_.size());
    if (total - have > available) return NoBlocks(total - have, available);
    for (int i = have; i < total; ++i) {
      sequence->table.push_back(TakeFree(&moves));
      Lease(sequence->table.back(), i);
    }
  }
  Save(moves);
  return Status::Ok();
}

}  // namespace margay
