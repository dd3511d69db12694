#include "kv/kv_pool.h"

#include <algorithm>
#include <mutex>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "kv/pool_image.h"
#include "kv/prefix_index.h"

namespace margay {
namespace {

int BlocksFor(size_t tokens) { return static_cast<int>((tokens + kBlockTokens - 1) / kBlockTokens); }

struct Block {
  BlockState state = BlockState::kFree;
  bool published = false;  // in the prefix index under `hash`
  uint32_t generation = 0;
  int refs = 0;  // sequences that have it in their table
  int out = 0;   // flights
  int in = 0;
  BlockHash hash{};
  // Order of eviction: longest unused first, of one sequence the last block first, so that no block outlives what its
  // hash is chained to.
  uint64_t used = 0;
  int depth = 0;

  bool idle() const { return refs == 0 && out == 0 && in == 0; }
};

struct Sequence {
  KvUse use;
  bool attached = false;
  int prompt_tokens = 0;
  int cached_blocks = 0;  // leading blocks found in the cache
  int length = 0;
  std::vector<int32_t> table;
  std::vector<BlockHash> hashes;  // of the leading full blocks known so far

  bool receiving() const { return use == KvUse::kReceive && !attached; }
};

class Pool final : public KvPool {
 public:
  Pool(std::unique_ptr<PoolImage> image, const std::string& model_hash)
      : image_(std::move(image)), root_(HashRoot(model_hash)), blocks_(static_cast<size_t>(image_->blocks())) {
    counts_[static_cast<size_t>(BlockState::kFree)] = image_->blocks();
    for (int32_t block = image_->blocks(); block-- > 0;) free_.push_back(block);
  }

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

  std::array<int, kBlockStates> Counts() const override {
    std::lock_guard lock(mutex_);
    return counts_;
  }
  int Available() const override {
    std::lock_guard lock(mutex_);
    return static_cast<int>(free_.size() + evictable_.size());
  }
  KvChanges TakeChanges() override {
    std::lock_guard lock(mutex_);
    return index_.Take();
  }
  std::vector<uint8_t> PrefixHashes() const override {
    std::lock_guard lock(mutex_);
    return index_.All();
  }
  std::string CheckInvariants() const override;

 private:
  using EvictionKey = std::tuple<uint64_t, int, int32_t>;  // used, -depth, block

  Block& At(int32_t block) { return blocks_[static_cast<size_t>(block)]; }
  const Block& At(int32_t block) const { return blocks_[static_cast<size_t>(block)]; }
  Sequence* Find(SequenceKvId id) {
    const auto found = sequences_.find(id);
    return found == sequences_.end() ? nullptr : &found->second;
  }
  Block* Held(const BlockLease& lease);

  void Set(int32_t block, BlockState to);
  void Free(int32_t block);
  void Lease(int32_t block, int depth);
  int32_t TakeFree();
  void Settle(int32_t block);
  void Unpublish(Block& block);
  void Seal(Sequence& sequence, int logical);
  void LearnHashes(Sequence& sequence, std::span<const int32_t> tokens, int blocks);
  void AttachBlocks(Sequence& sequence, int blocks);
  bool MarkArrival(const BlockLease& lease, BlockState to);
  EvictionKey KeyOf(int32_t block) const { return {At(block).used, -At(block).depth, block}; }

  std::string CheckBlock(int32_t block, int refs, int times_free) const;

  const std::unique_ptr<PoolImage> image_;
  const BlockHash root_;
  mutable std::mutex mutex_;
  std::vector<Block> blocks_;
  std::array<int, kBlockStates> counts_{};
  std::vector<int32_t> free_;
  std::set<EvictionKey> evictable_;  // cached and idle
  PrefixIndex index_;
  std::unordered_map<SequenceKvId, Sequence> sequences_;
  SequenceKvId next_id_ = 1;
  uint64_t clock_ = 0;
  std::string forbidden_;  // first transition that lifecycle forbids, for CheckInvariants
};

// The only place that changes a state (B1).
void Pool::Set(int32_t block, BlockState to) {
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

void Pool::Unpublish(Block& block) {
  if (!block.published) return;
  index_.Erase(block.hash);
  block.published = false;
}

void Pool::Free(int32_t block) {
  Block& entry = At(block);
  Unpublish(entry);
  Set(block, BlockState::kFree);
  ++entry.generation;
  // Before any new row is written: a reader that still copies sees the change after its copy.
  image_->head()->generations()[block].store(entry.generation, std::memory_order_seq_cst);
  free_.push_back(block);
}

// To its first user; the caller took it off the free list.
void Pool::Lease(int32_t block, int depth) {
  Set(block, BlockState::kReserved);
  At(block).refs = 1;
  At(block).depth = depth;
}

// What becomes of a block that lost a user or a flight.
void Pool::Settle(int32_t block) {
  Block& entry = At(block);
  if (entry.state == BlockState::kSending && entry.out == 0 && entry.refs > 0) Set(block, BlockState::kSealed);
  if (!entry.idle()) return;
  if (!entry.published) return Free(block);
  Set(block, BlockState::kCached);
  evictable_.insert(KeyOf(block));
}

Block* Pool::Held(const BlockLease& lease) {
  if (lease.block < 0 || lease.block >= image_->blocks()) return nullptr;
  Block& block = At(lease.block);
  return block.generation == lease.generation && block.state != BlockState::kFree ? &block : nullptr;
}

Result<OpenedKv> Pool::Open(std::span<const int32_t> tokens, int capacity, KvUse use) {
  if (tokens.empty() || capacity < static_cast<int>(tokens.size())) {
    return Status(Code::kBadArgument, "a sequence needs a token, and capacity for all of them");
  }
  Sequence sequence;
  sequence.use = use;
  sequence.prompt_tokens = static_cast<int>(tokens.size());
  sequence.table.reserve(blocks_.size());  // so that it never moves
  LearnHashes(sequence, tokens, sequence.prompt_tokens / kBlockTokens);

  std::lock_guard lock(mutex_);
  const int total = BlocksFor(static_cast<size_t>(capacity));
  const int most_cached = (sequence.prompt_tokens - 1) / kBlockTokens;  // one token at least is computed
  int pinned_idle = 0;
  for (int i = 0; i < most_cached; ++i) {
    const int32_t block = index_.Find(sequence.hashes[static_cast<size_t>(i)]);
    if (block < 0) break;
    if (At(block).idle()) ++pinned_idle;
    sequence.table.push_back(block);
  }
  sequence.cached_blocks = static_cast<int>(sequence.table.size());
  const int available = static_cast<int>(free_.size() + evictable_.size()) - pinned_idle;
  if (total - sequence.cached_blocks > available) {
    return Status(Code::kNoBlocks, std::to_string(total - sequence.cached_blocks) + " blocks needed, " +
                                       std::to_string(available) + " available");
  }
  for (const int32_t block : sequence.table) {
    if (At(block).idle()) evictable_.erase(KeyOf(block));
    ++At(block).refs;
  }
  for (int i = sequence.cached_blocks; i < total; ++i) {
    sequence.table.push_back(TakeFree());
    Lease(sequence.table.back(), i);
  }
  sequence.length = sequence.cached_blocks * kBlockTokens;
  const OpenedKv opened{next_id_++, sequence.length};
  sequences_.emplace(opened.id, std::move(sequence));
  return opened;
}

// Off the free list; the longest unused cached block goes there first when it is empty. There must be one of either.
int32_t Pool::TakeFree() {
  if (free_.empty()) {
    const int32_t oldest = std::get<2>(*evictable_.begin());
    evictable_.erase(evictable_.begin());
    Free(oldest);
  }
  const int32_t block = free_.back();
  free_.pop_back();
  return block;
}

Status Pool::Grow(SequenceKvId id, int capacity) {
  std::lock_guard lock(mutex_);
  Sequence* sequence = Find(id);
  if (sequence == nullptr) return {Code::kStaleHandle, "no such KV sequence"};
  const int have = static_cast<int>(sequence->table.size());
  const int total = BlocksFor(static_cast<size_t>(std::max(capacity, 0)));
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

std::span<const int32_t> Pool::BlockTable(SequenceKvId id) {
  std::lock_guard lock(mutex_);
  const Sequence* sequence = Find(id);
  return sequence == nullptr ? std::span<const int32_t>() : std::span<const int32_t>(sequence->table);
}

void Pool::LearnHashes(Sequence& sequence, std::span<const int32_t> tokens, int blocks) {
  for (int i = static_cast<int>(sequence.hashes.size()); i < blocks; ++i) {
    const BlockHash& previous = i == 0 ? root_ : sequence.hashes.back();
    sequence.hashes.push_back(HashNext(previous, tokens.data() + static_cast<size_t>(i) * kBlockTokens));
  }
}

// All rows of a block are there: it is readable, and others may share it unless its content is cached already.
void Pool::Seal(Sequence& sequence, int logical) {
  const int32_t block = sequence.table[static_cast<size_t>(logical)];
  Block& entry = At(block);
  Set(block, BlockState::kSealed);
  entry.hash = sequence.hashes[static_cast<size_t>(logical)];
  entry.published = index_.Insert(entry.hash, block);
  if (entry.out > 0) Set(block, BlockState::kSending);
}

void Pool::Advance(SequenceKvId id, std::span<const int32_t> tokens, int length) {
  std::lock_guard lock(mutex_);
  Sequence* sequence = Find(id);
  if (sequence == nullptr || sequence->receiving()) return;
  const int limit = std::min(static_cast<int>(tokens.size()), static_cast<int>(sequence->table.size()) * kBlockTokens);
  length = std::min(length, limit);
  if (length <= sequence->length) return;
  LearnHashes(*sequence, tokens, length / kBlockTokens);
  for (int i = sequence->length / kBlockTokens; i < BlocksFor(static_cast<size_t>(length)); ++i) {
    Set(sequence->table[static_cast<size_t>(i)], BlockState::kFilling);
    if ((i + 1) * kBlockTokens <= length) Seal(*sequence, i);
  }
  sequence->length = length;
}

// The leading `blocks` hold received rows: they belong to a sequence that decodes from now on.
void Pool::AttachBlocks(Sequence& sequence, int blocks) {
  for (int i = 0; i < blocks; ++i) {
    const int32_t block = sequence.table[static_cast<size_t>(i)];
    Block& entry = At(block);
    const bool full = (i + 1) * kBlockTokens <= sequence.prompt_tokens;
    if (i >= sequence.cached_blocks && full) {
      entry.hash = sequence.hashes[static_cast<size_t>(i)];
      entry.published = index_.Insert(entry.hash, block);
    }
    if (entry.state == BlockState::kSealed || entry.state == BlockState::kCached) Set(block, BlockState::kAttached);
  }
  sequence.attached = true;
  sequence.length = std::min(sequence.prompt_tokens, blocks * kBlockTokens);
}

Status Pool::Attach(SequenceKvId id) {
  std::lock_guard lock(mutex_);
  Sequence* sequence = Find(id);
  if (sequence == nullptr) return {Code::kStaleHandle, "no such KV sequence"};
  if (!sequence->receiving()) return {Code::kBadState, "the KV sequence waits for no pages"};
  const int expected = BlocksFor(static_cast<size_t>(sequence->prompt_tokens));
  for (int i = sequence->cached_blocks; i < expected; ++i) {
    if (At(sequence->table[static_cast<size_t>(i)]).state != BlockState::kSealed) {
      return {Code::kBadState, "pages are missing, the first in block " + std::to_string(i)};
    }
  }
  AttachBlocks(*sequence, expected);
  return Status::Ok();
}

Result<int> Pool::AttachArrived(SequenceKvId id) {
  std::lock_guard lock(mutex_);
  Sequence* sequence = Find(id);
  if (sequence == nullptr) return Status(Code::kStaleHandle, "no such KV sequence");
  if (!sequence->receiving()) return Status(Code::kBadState, "the KV sequence waits for no pages");
  for (const int32_t block : sequence->table) {
    if (At(block).in > 0) return Status(Code::kBadState, "the receiver still expects pages of the KV sequence");
  }
  int arrived = sequence->cached_blocks;
  const int most = (sequence->prompt_tokens - 1) / kBlockTokens;  // one token at least is computed
  while (arrived < most && At(sequence->table[static_cast<size_t>(arrived)]).state == BlockState::kSealed) ++arrived;
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
  return arrived * kBlockTokens;
}

void Pool::Close(SequenceKvId id, bool keep) {
  std::lock_guard lock(mutex_);
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  const Sequence sequence = std::move(found->second);
  sequences_.erase(found);
  ++clock_;
  for (size_t i = 0; i < sequence.table.size(); ++i) {
    const int32_t block = sequence.table[i];
    Block& entry = At(block);
    --entry.refs;
    entry.used = clock_;
    if (entry.state == BlockState::kFilling && entry.out > 0) {
      // A partial last block whose rows are still being sent.
      Set(block, BlockState::kSealed);
      Set(block, BlockState::kSending);
    }
    const bool own = i >= static_cast<size_t>(sequence.cached_blocks);
    if (own && !keep && entry.refs == 0) Unpublish(entry);
    Settle(block);
  }
}

Result<std::vector<BlockLease>> Pool::StartFlight(SequenceKvId id, int first, int count, Flight way) {
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

void Pool::EndFlight(std::span<const BlockLease> leases, Flight way) {
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

bool Pool::MarkArrival(const BlockLease& lease, BlockState to) {
  std::lock_guard lock(mutex_);
  const Block* block = Held(lease);
  if (block == nullptr || block->in == 0) return false;
  if (block->state != BlockState::kReserved && block->state != BlockState::kReceiving) return false;
  Set(lease.block, BlockState::kReceiving);
  Set(lease.block, to);
  return true;
}

std::string Pool::CheckBlock(int32_t block, int refs, int times_free) const {
  const Block& entry = At(block);
  const bool is_free = entry.state == BlockState::kFree;
  const bool readable = entry.state >= BlockState::kSealed;
  const bool evictable = evictable_.contains(KeyOf(block));
  if (refs != entry.refs) return "counts " + std::to_string(entry.refs) + " users, has " + std::to_string(refs);
  if (times_free != (is_free ? 1 : 0)) return "is on the free list " + std::to_string(times_free) + " times";
  if (is_free && (!entry.idle() || entry.published)) return "is free and in use (B1)";
  if (entry.published && !readable) return "is published before it is readable (B3)";
  if (entry.published && index_.Find(entry.hash) != block) return "is published under a hash of another block";
  if (entry.state == BlockState::kCached && !entry.published) return "is cached and not published";
  if (evictable && !entry.idle()) return "could be evicted while in use (B4)";
  if (evictable != (entry.state == BlockState::kCached && entry.idle())) return "is lost to eviction";
  if (!is_free && !evictable && entry.idle()) return "belongs to nobody";
  if (entry.refs > 1 && !entry.published) return "is shared and private";
  if (entry.state == BlockState::kSending && entry.out == 0) return "is sending and nobody sends it";
  if (entry.state == BlockState::kAttached && entry.idle()) return "is attached to nobody (B4)";
  if (image_->head()->generations()[block].load() != entry.generation) return "shows peers an old generation (B2)";
  return "";
}

std::string Pool::CheckInvariants() const {
  std::lock_guard lock(mutex_);
  if (!forbidden_.empty()) return forbidden_;
  const size_t size = blocks_.size();
  std::array<int, kBlockStates> counts{};
  std::vector<int> refs(size), times_free(size);
  size_t published = 0, idle_cached = 0;
  for (const auto& [id, sequence] : sequences_) {
    for (const int32_t block : sequence.table) ++refs[static_cast<size_t>(block)];
  }
  for (const int32_t block : free_) ++times_free[static_cast<size_t>(block)];
  for (size_t i = 0; i < size; ++i) {
    ++counts[static_cast<size_t>(blocks_[i].state)];
    published += blocks_[i].published ? 1 : 0;
    idle_cached += blocks_[i].state == BlockState::kCached && blocks_[i].idle() ? 1 : 0;
    const std::string broken = CheckBlock(static_cast<int32_t>(i), refs[i], times_free[i]);
    if (!broken.empty()) return "block " + std::to_string(i) + " (" + BlockStateName(blocks_[i].state) + ") " + broken;
  }
  if (counts != counts_) return "the counts of states do not add up (B5)";
  if (published != index_.size()) return "the prefix index names blocks that are not published";
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

}  // namespace

Result<std::unique_ptr<KvPool>> KvPool::Create(const KvLayout& layout, int blocks, const std::string& model_hash) {
  Result<std::unique_ptr<PoolImage>> image = PoolImage::Create(layout, blocks);
  if (!image.ok()) return image.status();
  return std::unique_ptr<KvPool>(std::make_unique<Pool>(std::move(*image), model_hash));
}

}  // namespace margay
