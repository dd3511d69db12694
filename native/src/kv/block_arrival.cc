// Blocks that bytes travel from or to: what the transport asks of the pool.
#include <algorithm>
#include <utility>

#include "kv/block_pool.h"

namespace margay {

// The leading `blocks` hold received rows: they belong to a sequence that decodes from now on.
void BlockPool::AttachBlocks(Sequence& sequence, int blocks) {
  for (int i = 0; i < blocks; ++i) {
    const int32_t block = sequence.table[static_cast<size_t>(i)];
    const Block& entry = At(block);
    const bool full = (i + 1) * kBlockTokens <= sequence.prompt_tokens;
    if (i >= sequence.cached_blocks && full) Publish(sequence, i);
    if (entry.state == BlockState::kSealed || entry.state == BlockState::kCached) Set(block, BlockState::kAttached);
  }
  sequence.attached = true;
  sequence.length = std::min(sequence.prompt_tokens, blocks * kBlockTokens);
}

Status BlockPool::Attach(SequenceKvId id) {
  std::lock_guard lock(mutex_);
  Sequence* sequence = Find(id);
  if (sequence == nullptr) return {Code::kStaleHandle, "no such KV sequence"};
  if (!sequence->receiving()) return {Code::kBadState, "the KV sequence waits for no pages"};
  const int expected = BlocksFor(sequence->prompt_tokens);
  for (int i = sequence->cached_blocks; i < expected; ++i) {
    if (At(sequence->table[static_cast<size_t>(i)]).state != BlockState::kSealed) {
      return {Code::kBadState, "pages are missing, the first in block " + std::to_string(i)};
    }
  }
  AttachBlocks(*sequence, expected);
  return Status::Ok();
}

Result<int> BlockPool::AttachArrived(SequenceKvId id) {
  std::lock_guard lock(mutex_);
  Sequence* sequence = Find(id);
  if (sequence == nullptr) return Status(Code::kStaleHandle, "no such KV sequence");
  if (!sequence->receiving()) return Status(Code::kBadState, "the KV sequence waits for no pages");
  for (const int32_t block : sequence->table) {
    if (At(block).in > 0) return Status(Code::kBadState, "the receiver still expects pages of the KV sequence");
  }
  const auto sealed = [&](int i) { return At(sequence->table[static_cast<size_t>(i)]).state == BlockState::kSealed; };
  const int expected = BlocksFor(sequence->prompt_tokens);
  int arrived = sequence->cached_blocks;
  while (arrived < expected && sealed(arrived)) ++arrived;
  if (arrived == expected && sequence->prompt_tokens % kBlockTokens != 0) {
    // Everything is here: the last row alone is computed again, in a block that is nobody else's and grows anyway.
    AttachBlocks(*sequence, expected);
    sequence->length = sequence->prompt_tokens - 1;
    return sequence->length;
  }
  const int most = (sequence->prompt_tokens - 1) / kBlockTokens;  // one token at least is computed
  arrived = std::min(arrived, std::max(most, sequence->cached_blocks));
  const bool untouched = arrived == sequence->cached_blocks &&
                         At(sequence->table[static_cast<size_t>(arrived)]).state == BlockState::kReserved;
  for (size_t i = static_cast<size_t>(arrived); i < sequence->table.size(); ++i) {
    if (At(sequence->table[i]).state == BlockState::kReserved) continue;
    // What came for it is void: back to free and leased anew, under another generation.
    At(sequence->table[i]).refs = 0;
    Free(sequence->table[i]);
    sequence->table[i] = free_.back();
    free_.pop_back();
    Lease(sequence->table[i], static_cast<int>(i));
  }
  AttachBlocks(*sequence, arrived);
  if (untouched) sequence->length = sequence->cached_tokens;  // the rows copied from another block are still there
  return sequence->length;
}

Result<std::vector<BlockLease>> BlockPool::StartFlight(SequenceKvId id, int first, int count, Flight way) {
  std::lock_guard lock(mutex_);
  const Sequence* sequence = Find(id);
  if (sequence == nullptr) return Status(Code::kStaleHandle, "no such KV sequence");
  if (first < 0 || count < 0 || first + count > static_cast<int>(sequence->table.size())) {
    return Status(Code::kBadArgument, "blocks outside the KV sequence");
  }
  if (way == Flight::kIn && (!sequence->receiving() || first < sequence->cached_blocks)) {
    return Status(Code::kBadState, "the KV sequence waits for no pages of these blocks");
  }
  std::vector<BlockLease> leases;
  leases.reserve(static_cast<size_t>(count));
  for (int i = first; i < first + count; ++i) {
    const int32_t block = sequence->table[static_cast<size_t>(i)];
    Block& entry = At(block);
    const bool readable = (i + 1) * kBlockTokens <= sequence->length;
    ++(way == Flight::kOut ? entry.out : entry.in);
    if (way == Flight::kOut && (entry.state == BlockState::kSealed || entry.state == BlockState::kCached)) {
      Set(block, BlockState::kSending);
    }
    leases.push_back({block, entry.generation, readable});
  }
  return leases;
}

void BlockPool::EndFlight(std::span<const BlockLease> leases, Flight way) {
  std::lock_guard lock(mutex_);
  for (const BlockLease& lease : leases) {
    Block* block = Held(lease);
    if (block == nullptr) continue;
    int& flights = way == Flight::kOut ? block->out : block->in;
    if (flights == 0) continue;
    --flights;
    Settle(lease.block);
  }
}

bool BlockPool::MarkArrival(const BlockLease& lease, BlockState to) {
  std::lock_guard lock(mutex_);
  const Block* block = Held(lease);
  if (block == nullptr || block->in == 0) return false;
  if (block->state != BlockState::kReserved && block->state != BlockState::kReceiving) return false;
  Set(lease.block, BlockState::kReceiving);
  Set(lease.block, to);
  return true;
}

}  // namespace margay
