#include "kv/block_pool.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace margay {

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

// Leading blocks that others have computed; returns how many of them nobody uses now.
int BlockPool::FindShared(Sequence* sequence) const {
  const int most = (sequence->prompt_tokens - 1) / kBlockTokens;  // one token at least is computed
  int idle = 0;
  for (int i = 0; i < most; ++i) {
    const int32_t block = index_.Find(sequence->hashes[static_cast<size_t>(i)]);
    if (block < 0) break;
    idle += At(block).idle() ? 1 : 0;
    sequence->table.push_back(block);
  }
  sequence->cached_blocks = static_cast<int>(sequence->table.size());
  return idle;
}

// The block that shares most rows with what follows the shared blocks.
BlockTexts::Match BlockPool::FindBegun(const Sequence& sequence, std::span<const int32_t> tokens) const {
  const std::span<const int32_t> rest = tokens.subspan(static_cast<size_t>(sequence.cached_blocks) * kBlockTokens);
  const size_t most = std::min(rest.size() - 1, static_cast<size_t>(kBlockTokens));
  return texts_.Longest(HashBefore(sequence, sequence.cached_blocks), rest.first(most));
}

// Against eviction and reuse, until Settle finds `out` at zero again.
void BlockPool::Hold(int32_t block) {
  if (At(block).idle()) evictable_.erase(KeyOf(block));
  ++At(block).out;
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
  const int available = static_cast<int>(free_.size() + evictable_.size()) - FindShared(&sequence);
  const int needed = BlocksFor(capacity) - sequence.cached_blocks;
  if (needed > available) {
    return Status(Code::kNoBlocks,
                  std::to_string(needed) + " blocks needed, " + std::to_string(available) + " available");
  }
  for (const int32_t block : sequence.table) {
    if (At(block).idle()) evictable_.erase(KeyOf(block));
    ++At(block).refs;
  }
  BlockTexts::Match begun = FindBegun(sequence, tokens);
  // The last block to be had may be the one to copy from.
  if (begun.rows > 0 && At(begun.block).idle() && needed == available) begun = {};
  if (begun.rows > 0) Hold(begun.block);
  for (int i = 0; i < needed; ++i) {
    sequence.table.push_back(TakeFree());
    Lease(sequence.table.back(), sequence.cached_blocks + i);
  }
  for (int i = sequence.cached_blocks; i < BlocksFor(sequence.prompt_tokens); ++i) {
    const std::span<const int32_t> rest = tokens.subspan(static_cast<size_t>(i) * kBlockTokens);
    texts_.Write(sequence.table[static_cast<size_t>(i)], 0, rest.first(std::min<size_t>(rest.size(), kBlockTokens)));
  }
  sequence.cached_tokens = sequence.length = sequence.cached_blocks * kBlockTokens + begun.rows;
  const int32_t into = sequence.table[static_cast<size_t>(sequence.cached_blocks)];
  const OpenedKv opened{next_id_++, sequence.cached_tokens};
  sequences_.emplace(opened.id, std::move(sequence));
  if (begun.rows == 0) return opened;

  lock.unlock();
  CopyRows(begun, into);
  lock.lock();
  --At(begun.block).out;
  At(begun.block).used = ++clock_;
  Settle(begun.block);
  return opened;
}

// Off the free list; the longest unused cached block goes there first when it is empty. There must be one of either.
int32_t BlockPool::TakeFree() {
  if (free_.empty()) {
    const int32_t oldest = std::get<2>(*evictable_.begin());
    evictable_.erase(evictable_.begin());
    Free(oldest);
  }
  const int32_t block = free_.back();
  free_.pop_back();
  return block;
}

Status BlockPool::Grow(SequenceKvId id, int capacity) {
  std::lock_guard lock(mutex_);
  Sequence* sequence = Find(id);
  if (sequence == nullptr) return {Code::kStaleHandle, "no such KV sequence"};
  const int have = static_cast<int>(sequence->table.size());
  const int total = BlocksFor(std::max(capacity, 0));
  const int available = static_cast<int>(free_.size() + evictable_.size());
  if (total - have > available) {
    return {Code::kNoBlocks, std::to_string(total - have) + " blocks needed, " + std::to_string(available) + " available"};
  }
  for (int i = have; i < total; ++i) {
    sequence->table.push_back(TakeFree());
    Lease(sequence->table.back(), i);
  }
  return Status::Ok();
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

BlockPool::BlockPool(std::unique_ptr<PoolImage> image, const std::string& model_hash)
    : image_(std::move(image)),
      root_(HashRoot(model_hash)),
      blocks_(static_cast<size_t>(image_->blocks())),
      texts_(image_->blocks()) {
  counts_[static_cast<size_t>(BlockState::kFree)] = image_->blocks();
  for (int32_t block = image_->blocks(); block-- > 0;) free_.push_back(block);
}

Result<std::unique_ptr<KvPool>> KvPool::Create(const KvLayout& layout, int blocks, const std::string& model_hash) {
  Result<std::unique_ptr<PoolImage>> image = PoolImage::Create(layout, blocks);
  if (!image.ok()) return image.status();
  return std::unique_ptr<KvPool>(std::make_unique<BlockPool>(std::move(*image), model_hash));
}

}  // namespace margay
