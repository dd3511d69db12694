// Owns the memory file of a pool: a head with the generation of every block, then the rows as KvMemory lays them out.
// The owner writes it; a peer on the same host maps it read-only and compares generations around a copy (B7).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "core/kv_memory.h"
#include "core/sealed_memory.h"
#include "core/status.h"

namespace margay {

struct PoolHead {
  static constexpr uint64_t kMagic = 0x314c4f4f504b474dull;  // "MGKPOOL1"

  uint64_t magic;
  uint32_t head_bytes;
  int32_t blocks;
  uint64_t page_bytes;
  int32_t attentions;
  uint32_t unused;
  // One per block follows; lock-free, so that they work across processes.
  std::atomic<uint32_t>* generations() { return reinterpret_cast<std::atomic<uint32_t>*>(this + 1); }
  const std::atomic<uint32_t>* generations() const { return reinterpret_cast<const std::atomic<uint32_t>*>(this + 1); }
};
static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

// A mapping of a pool's memory file, writable for its owner only.
class PoolImage {
 public:
  // A new file, sealed (core/sealed_memory.h).
  static Result<std::unique_ptr<PoolImage>> Create(const KvLayout& layout, int blocks);
  // Maps a peer's file read-only after checking that it is sealed and has this layout. Takes the descriptor.
  static Result<std::unique_ptr<PoolImage>> Map(int fd, const KvLayout& layout);
  int fd() const { return memory_.fd(); }
  int blocks() const { return blocks_; }
  KvMemory memory() const { return {memory_.base() + head_bytes_, layout_, blocks_}; }
  PoolHead* head() { return reinterpret_cast<PoolHead*>(memory_.base()); }
  const PoolHead* head() const { return reinterpret_cast<const PoolHead*>(memory_.base()); }

 private:
  PoolImage(SealedMemory memory, const KvLayout& layout) : memory_(std::move(memory)), layout_(layout) {}

  SealedMemory memory_;
  size_t head_bytes_ = 0;
  KvLayout layout_;
  int blocks_ = 0;
};

}  // namespace margay
