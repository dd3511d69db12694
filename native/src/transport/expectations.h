// Owns what the decode side waits for: which pages of which sequence may still be written, and into which block.
//
//   expected -> copying <-> expected -> complete -> forgotten
//                                   \-> failed   -> forgotten
//
// E1 a page is written only between Take and Finish, into a block held for its sequence (Flight::kIn)
// E2 after Forget nothing is claimed for the sequence, and a claim in progress has been finished
// E3 each sequence is reported once, unless it is forgotten before
// Take, Finish and Expire belong to the receiver's thread; Expect and Forget may come from any.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "kv/kv_pool.h"
#include "transport/frame.h"

namespace margay {

class Expectations {
 public:
  explicit Expectations(KvPool* pool) : pool_(pool), memory_(pool->memory()) {}
  ~Expectations();
  Expectations(const Expectations&) = delete;
  Expectations& operator=(const Expectations&) = delete;

  Status Expect(SequenceRef sequence, SequenceKvId kv, int cached_tokens, int tokens, int64_t deadline_ms);
  void Forget(SequenceRef sequence);

  struct Verdict {
    std::optional<FrameRefusal> refusal;
    bool duplicate = false;
    bool wanted() const { return !refusal && !duplicate; }
  };
  // What a page is worth before its bytes are looked at.
  Verdict Judge(const FrameHead& page) const;

  struct Claim {
    Verdict verdict;
    std::byte* into = nullptr;  // when wanted
  };
  // Judges again and takes the page for writing; every wanted claim is followed by Finish.
  Claim Take(const FrameHead& page);
  // False when the sequence was forgotten meanwhile. A transfer that is complete with this page is put into `outcome`.
  bool Finish(const FrameHead& page, bool good, std::optional<TransferOutcome>* outcome);

  // Fails what is past its deadline.
  std::vector<TransferOutcome> Expire(int64_t now_ms);
  int64_t NextDeadline() const;  // -1: none

 private:
  struct Entry {
    SequenceRef sequence;
    int first_block = 0;
    int first_row = 0;  // of the first block: those before are there
    int tokens = 0;
    int64_t deadline_ms = 0;
    std::vector<BlockLease> leases;
    std::vector<uint8_t> arrived;    // [block][attention]
    std::vector<int> block_arrived;  // pages
    size_t missing = 0;
    enum class State : uint8_t { kExpected, kComplete, kFailed } state = State::kExpected;
    uint64_t bytes = 0;
    int64_t first_us = 0;  // first page claimed
  };

  static bool Same(SequenceRef a, SequenceRef b) { return a.slot == b.slot && a.generation == b.generation; }
  size_t PageIndex(int block, int attention) const {
    return static_cast<size_t>(block) * static_cast<size_t>(memory_.layout.attentions) + static_cast<size_t>(attention);
  }
  Verdict JudgeLocked(const FrameHead& page) const;
  Entry* Find(SequenceRef sequence) const;
  void Release(Entry& entry);
  TransferOutcome Report(const Entry& entry, bool ok) const;

  KvPool* const pool_;
  const KvMemory memory_;
  mutable std::mutex mutex_;
  std::condition_variable finished_;
  std::unordered_map<int32_t, std::unique_ptr<Entry>> entries_;  // by slot
  std::optional<SequenceRef> claimed_;                           // whose page is being written
};

}  // namespace margay
