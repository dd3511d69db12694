#include <string>

#include "kv/block_pool.h"

namespace margay {

std::string BlockPool::CheckBlock(int32_t block, int refs, int times_free) const {
  const Block& entry = At(block);
  const bool is_free = entry.state == BlockState::kFree;
  const bool readable = entry.state >= BlockState::kSealed;
  const bool evictable = evictable_.contains(KeyOf(block));
  if (refs != entry.refs) return "counts " + std::to_string(entry.refs) + " users, has " + std::to_string(refs);
  if (times_free != (is_free ? 1 : 0)) return "is on the free list " + std::to_string(times_free) + " times";
  if (is_free && (!entry.idle() || entry.published)) return "is free and in use (B1)";
  if (entry.published && !readable) return "is published before it is readable (B3)";
  const bool full = texts_.rows(block) == kBlockTokens;
  if (entry.published && full && index_.Find(entry.hash) != block) return "is published under a hash of another block";
  if (entry.state == BlockState::kCached && !entry.published) return "is cached and not published";
  if (evictable && !entry.idle()) return "could be evicted while in use (B4)";
  if (evictable != (entry.state == BlockState::kCached && entry.idle())) return "is lost to eviction";
  if (!is_free && !evictable && entry.idle()) return "belongs to nobody";
  if (entry.refs > 0 && entry.published && !full) return "is a tail and in use";
  if (entry.refs > 1 && !entry.published) return "is shared and private";
  if (entry.state == BlockState::kSending && entry.out == 0) return "is sending and nobody sends it";
  if (entry.state == BlockState::kAttached && entry.idle()) return "is attached to nobody (B4)";
  if (image_->head()->generations()[block].load() != entry.generation) return "shows peers an old generation (B2)";
  return "";
}

std::string BlockPool::CheckInvariants() const {
  std::lock_guard lock(mutex_);
  if (!forbidden_.empty()) return forbidden_;
  const size_t size = blocks_.size();
  std::array<int, kBlockStates> counts{};
  std::vector<int> refs(size), times_free(size);
  size_t published = 0, full = 0, idle_cached = 0;
  for (const auto& [id, sequence] : sequences_) {
    for (const int32_t block : sequence.table) ++refs[static_cast<size_t>(block)];
  }
  for (const int32_t block : free_) ++times_free[static_cast<size_t>(block)];
  for (size_t i = 0; i < size; ++i) {
    ++counts[static_cast<size_t>(blocks_[i].state)];
    const bool listed = blocks_[i].published;
    published += listed ? 1 : 0;
    full += listed && texts_.rows(static_cast<int32_t>(i)) == kBlockTokens ? 1 : 0;
    idle_cached += blocks_[i].state == BlockState::kCached && blocks_[i].idle() ? 1 : 0;
    const std::string broken = CheckBlock(static_cast<int32_t>(i), refs[i], times_free[i]);
    if (!broken.empty()) return "block " + std::to_string(i) + " (" + BlockStateName(blocks_[i].state) + ") " + broken;
  }
  if (counts != counts_) return "the counts of states do not add up (B5)";
  if (published != texts_.listed()) return "the order of texts names blocks that are not published";
  if (full != index_.size()) return "the prefix index names blocks that are not published";
  if (idle_cached != evictable_.size()) return "the eviction order names blocks that are not cached";
  for (const auto& [id, sequence] : sequences_) {
    for (int i = 0; (i + 1) * kBlockTokens <= sequence.length; ++i) {
      if (At(sequence.table[static_cast<size_t>(i)]).state < BlockState::kSealed) {
        return "sequence " + std::to_string(id) + " has computed rows in a block that is not readable (B3)";
      }
    }
  }
  return "";
}

}  // namespace margay
