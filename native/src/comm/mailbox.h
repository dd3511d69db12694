// What one rank has for the others, as it lies in memory: an outbox, which its owner writes and peers read, or a copy of
// one that arrives over a network. Every rank of a group computes the same layout.
//
//   head | heads of the lists [2][members] | heads of the results [members] | lists [2][members] | rows [2] | results [members]
//
// The words in the head are numbers that rise by one with every step (`begun`) or layer (`dispatched`, `combined`) and
// are stored last: who has seen the number may read what belongs to it.
// M1 rows and lists have two places, by the parity of the layer's number, results one. Reuse needs no acknowledgement:
//    a rank writes layer n + 2 after it has every peer's dispatch of n + 1, which a peer sends after its CombineSend of n,
//    with which it has read all of layer n. It writes results of n + 1 after the peer's dispatch of n + 1, which the peer
//    sends after it has added up its results of n.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "comm/exchange.h"

namespace margay {

// One (row, expert) pair of a list, by rising row, then expert.
struct ListEntry {
  uint16_t row;  // of the sender
  uint16_t expert;
  float weight;
};
static_assert(sizeof(ListEntry) == kChoiceBytes);

struct ListHead {
  uint32_t number;   // of the layer, counted over all steps
  uint32_t layer;    // as the model counts
  uint32_t entries;
  uint32_t rows;     // different ones among the entries
};

struct ResultHead {
  uint32_t number;  // of the layer
  uint32_t rows;
};

// What a rank waits for, in one word.
struct Waiting {
  enum class For : uint8_t { kNothing, kBegin, kDispatch, kCombine };
  For what = For::kNothing;
  int member = 0;
  uint32_t number = 0;

  uint64_t Pack() const {
    return uint64_t{number} << 32 | static_cast<uint64_t>(member & 0xffff) << 8 | static_cast<uint64_t>(what);
  }
  static Waiting Unpack(uint64_t word);
};

struct alignas(64) MailboxHead {
  static constexpr uint64_t kMagic = 0x31584f424d474d00ull;

  uint64_t magic;
  uint64_t epoch;
  uint64_t bytes;
  std::atomic<uint64_t> map_version;  // offered, of the step `begun`
  alignas(64) std::atomic<uint32_t> begun;
  std::atomic<uint32_t> resting;     // sleeps between steps: call it
  alignas(64) std::atomic<uint32_t> dispatched;
  std::atomic<int64_t> dispatched_ns;  // when, in MonotonicNs()
  alignas(64) std::atomic<uint32_t> combined;
  std::atomic<int64_t> combined_ns;
  alignas(64) std::atomic<uint64_t> waiting;  // Waiting
  std::atomic<uint32_t> left;        // 0: it is there; else a GroupLoss
};
static_assert(std::atomic<uint32_t>::is_always_lock_free && std::atomic<uint64_t>::is_always_lock_free);

// CLOCK_MONOTONIC: the same for all processes of a host.
int64_t MonotonicNs();

// Where everything lies. Members of a group agree on it when they agree on these numbers.
class MailboxLayout {
 public:
  explicit MailboxLayout(const GroupSpec& spec);

  size_t bytes() const { return bytes_; }
  size_t row_stride() const { return row_stride_; }
  size_t result_stride() const { return result_stride_; }
  // Most entries of one list; most result rows for one member.
  size_t list_entries() const { return list_entries_; }
  size_t results() const { return results_; }

  size_t list_head(uint32_t number, int member) const {
    return list_heads_ + (Place(number) * members_ + static_cast<size_t>(member)) * sizeof(ListHead);
  }
  size_t result_head(int member) const { return result_heads_ + static_cast<size_t>(member) * sizeof(ResultHead); }
  size_t list(uint32_t number, int member) const {
    return lists_ + (Place(number) * members_ + static_cast<size_t>(member)) * list_stride_;
  }
  size_t row(uint32_t number, int row) const {
    return rows_ + (Place(number) * max_rows_ + static_cast<size_t>(row)) * row_stride_;
  }
  size_t result(int member, size_t i) const {
    return results_at_ + (static_cast<size_t>(member) * results_ + i) * result_stride_;
  }

 private:
  static size_t Place(uint32_t number) { return number & 1; }

  size_t members_, max_rows_;
  size_t row_stride_, result_stride_, list_entries_, list_stride_, results_;
  size_t list_heads_, result_heads_, lists_, rows_, results_at_, bytes_;
};

// Memory laid out so. Does not own it.
class Mailbox {
 public:
  Mailbox() = default;
  Mailbox(std::byte* base, const MailboxLayout* layout) : base_(base), layout_(layout) {}

  MailboxHead* head() const { return reinterpret_cast<MailboxHead*>(base_); }
  ListHead* list_head(uint32_t number, int member) const {
    return reinterpret_cast<ListHead*>(base_ + layout_->list_head(number, member));
  }
  ResultHead* result_head(int member) const { return reinterpret_cast<ResultHead*>(base_ + layout_->result_head(member)); }
  ListEntry* list(uint32_t number, int member) const {
    return reinterpret_cast<ListEntry*>(base_ + layout_->list(number, member));
  }
  std::byte* row(uint32_t number, int row) const { return base_ + layout_->row(number, row); }
  std::byte* result(int member, size_t i) const { return base_ + layout_->result(member, i); }

 private:
  std::byte* base_ = nullptr;
  const MailboxLayout* layout_ = nullptr;
};

// Memory for one mailbox that nobody else maps: zeroed, and taken from the system as it is touched.
class MailboxMemory {
 public:
  static Result<MailboxMemory> Create(const MailboxLayout& layout);
  MailboxMemory(MailboxMemory&& other) noexcept;
  MailboxMemory& operator=(MailboxMemory&& other) = delete;
  ~MailboxMemory();
  std::byte* base() const { return base_; }

 private:
  MailboxMemory(std::byte* base, size_t bytes) : base_(base), bytes_(bytes) {}

  std::byte* base_;
  size_t bytes_;
};

}  // namespace margay
