// Owns the second tier of the prefix cache: copies of full blocks that the pool had no room for, under a budget of their
// own, in memory or in a file.
//
//   saved -> loaded (any number of times) -> evicted, longest unused first, or damaged: forgotten
//
// S1 what is loaded has the checksums of what was saved; a damaged copy is forgotten, and counted
// S2 it outlives nothing: the file has no name
//
// Thread-safe; the mutex is held while a block is copied.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/file.h"
#include "core/kv_memory.h"
#include "core/status.h"
#include "kv/block_hash.h"

namespace margay {

struct KvTierOptions {
  uint64_t bytes = 0;  // 0: no second tier
  std::string folder;  // of the file; empty: memory
};

class KvTier {
 public:
  // kBadArgument when `bytes` holds no block, kIo when the file cannot be made that large.
  static Result<std::unique_ptr<KvTier>> Create(const KvTierOptions& options, const KvLayout& layout);

  // Copies a block's pages in, unless they are there. Returns what had to go for it.
  std::optional<BlockHash> Save(const BlockHash& hash, const KvMemory& pool, int32_t block);
  // As if it had been used: others go first.
  void Touch(const BlockHash& hash);
  // Copies them back. False: they are not there, or were damaged; then they are there no more.
  bool Load(const BlockHash& hash, const KvMemory& pool, int32_t block);

  int capacity() const { return capacity_; }  // blocks
  struct Counters {
    uint64_t evicted = 0;  // blocks
    uint64_t refused = 0;  // damaged
    uint64_t bytes = 0;    // held now
  };
  Counters counters() const;
  // For tests: where a saved block's pages lie; null when they do not.
  std::byte* Find(const BlockHash& hash);

 private:
  struct Slot {
    BlockHash hash{};
    size_t index = 0;
  };
  using Slots = std::list<Slot>;  // longest unused first

  KvTier(Mapping mapping, const KvLayout& layout, int capacity);
  std::byte* Page(size_t slot, int attention) const {
    return mapping_.data() + slot * layout_.block_bytes() + static_cast<size_t>(attention) * layout_.page_bytes();
  }
  uint64_t& Sum(size_t slot, int attention) {
    return sums_[slot * static_cast<size_t>(layout_.attentions) + static_cast<size_t>(attention)];
  }

  const Mapping mapping_;
  const KvLayout layout_;
  const int capacity_;
  mutable std::mutex mutex_;
  Slots slots_;
  std::unordered_map<BlockHash, Slots::iterator, BlockHashBytes> found_;
  std::vector<size_t> free_;
  std::vector<uint64_t> sums_;  // [slot][attention]
  Counters counters_;
};

}  // namespace margay
