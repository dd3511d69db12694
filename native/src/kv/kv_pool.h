// Owns the KV memory of one rank, the state of every block and the prefix cache.
//
//   prefill:  free -> reserved -> filling -> sealed -> sending -> cached -> free
//   decode:   free -> reserved -> receiving -> sealed -> attached -> cached -> free
//
// B1 only this class changes a block's state; every return to free bumps the block's generation
// B2 a lease names block and generation; a late user is refused
// B3 readable only when sealed, sending, attached or cached
// B4 pinned or attached blocks are never evicted
// B5 the counts of all states add up to the pool's size
// B7 only the owner's process writes the memory
//
// Thread-safe: one mutex, held for bookkeeping only, never while bytes are copied.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/kv_memory.h"
#include "core/status.h"
#include "kv/block_hash.h"
#include "kv/block_state.h"
#include "kv/kv_tier.h"

namespace margay {

// Prefix-cache changes since the last call, concatenated 16-byte hashes.
struct KvChanges {
  std::vector<uint8_t> stored;
  std::vector<uint8_t> removed;
};

// Of one tier of the prefix cache.
struct CacheCounters {
  uint64_t hit_tokens = 0;  // given tokens whose rows it had
  uint64_t missed_tokens = 0;
  uint64_t evicted_blocks = 0;
  uint64_t refused_blocks = 0;  // damaged
  uint64_t bytes = 0;           // held now for later
};

// The blocks of one sequence. Obtained from KvPool::Open; every other use goes through the pool.
using SequenceKvId = uint64_t;  // never reused

struct OpenedKv {
  SequenceKvId id = 0;
  int cached_tokens = 0;  // rows that are there, < tokens.size()
};

enum class KvUse : uint8_t { kCompute, kReceive };

// Bytes on their way out of a block (a sender reads it) or into it (a receiver writes it).
enum class Flight : uint8_t { kOut, kIn };

// B2: a block as somebody holds it. A generation that is no longer the block's makes the lease void.
struct BlockLease {
  int32_t block = -1;
  uint32_t generation = 0;
  bool readable = false;  // every row was there when the lease was made
};

class KvPool {
 public:
  // Memory is a memfd, so that a peer on the same host may map it read-only.
  // `second_tier` keeps full blocks that are evicted; they come back by copy when a sequence that begins with them opens.
  static Result<std::unique_ptr<KvPool>> Create(const KvLayout& layout, int blocks, const std::string& model_hash,
                                                const KvTierOptions& second_tier = {});
  virtual ~KvPool() = default;

  virtual KvMemory memory() const = 0;
  virtual int memory_fd() const = 0;

  // Leases blocks for `capacity` tokens: full blocks of a cached prefix of `tokens` are pinned and shared, the rest is
  // reserved (cached unpinned blocks are evicted least recently used first). Of the block after the shared ones as many
  // leading rows are copied as any block holds that others may read: a full one in which the prompt ends or branches
  // off, or the unfilled last block that a closed sequence left. kNoBlocks when there are not enough.
  virtual Result<OpenedKv> Open(std::span<const int32_t> tokens, int capacity, KvUse use) = 0;

  // More blocks, for `capacity` tokens in all: nothing when there are as many already. kNoBlocks: nothing has changed.
  // The table gets longer where it lies: spans of it that were given out keep showing what they showed.
  virtual Status Grow(SequenceKvId id, int capacity) = 0;

  // Physical block of each logical block; lies still until Close. Empty for an unknown id.
  virtual std::span<const int32_t> BlockTable(SequenceKvId id) = 0;

  // Rows [0, length) of all attentions are written and hold `tokens` (all of them, length >= tokens computed so far).
  // Full blocks are hashed and published to the prefix cache; a block equal to a cached one stays private. A row may
  // depend on tokens up to its own alone: whoever shares those shares it.
  virtual void Advance(SequenceKvId id, std::span<const int32_t> tokens, int length) = 0;

  // kReceive sequences: all expected pages have arrived; blocks become attached.
  virtual Status Attach(SequenceKvId id) = 0;

  // kReceive sequences whose pages will not all come; the receiver must have forgotten them. The leading blocks that
  // arrived whole become attached, the others are to be computed. Returns how many leading tokens need no computing,
  // < tokens.size().
  virtual Result<int> AttachArrived(SequenceKvId id) = 0;

  // Gives the lease back. Published blocks and the rows of an unfilled last one stay cached when `keep`; the rest is
  // freed. Blocks with bytes in flight (a copy into or out of them) are freed when the last flight ends.
  virtual void Close(SequenceKvId id, bool keep) = 0;

  // For the transport. Holds logical blocks [first, first + count) against reuse until EndFlight, beyond Close.
  virtual Result<std::vector<BlockLease>> StartFlight(SequenceKvId id, int first, int count, Flight way) = 0;
  // Void leases are passed over.
  virtual void EndFlight(std::span<const BlockLease> leases, Flight way) = 0;
  // A block held kIn: its first page is about to be written (reserved -> receiving); all its pages are verified
  // (receiving -> sealed). False when the lease is void.
  virtual bool MarkReceiving(const BlockLease& lease) = 0;
  virtual bool MarkReceived(const BlockLease& lease) = 0;

  virtual std::array<int, kBlockStates> Counts() const = 0;
  virtual int Available() const = 0;  // free, and cached without a pin
  virtual CacheCounters PoolCounters() const = 0;
  virtual CacheCounters TierCounters() const = 0;  // zeros without a second tier
  virtual KvChanges TakeChanges() = 0;
  virtual std::vector<uint8_t> PrefixHashes() const = 0;
  // Walks everything; empty, or the first broken invariant.
  virtual std::string CheckInvariants() const = 0;
};

}  // namespace margay
