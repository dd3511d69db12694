// Owns how far the pages of one sequence have come on their way to D.
//
//   page:  not written -> due -> announced -> acknowledged
//                          ^------- again (refused as damaged, or the connection was lost)
//
// O1 each page is acknowledged once; a block is released when all its pages are
// O2 a page refused as damaged goes out at most 1 + kResends times
// `written`, `aborted` and `listed` belong to the sender's mutex, everything else to its thread.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kv/kv_pool.h"
#include "transport/frame.h"
#include "transport/kv_transfer.h"

namespace margay {

class Outgoing {
 public:
  static constexpr int kResends = 2;

  struct Page {
    int attention = 0;
    int index = 0;  // block, counted from the first that is sent
  };

  Outgoing(SequenceRef local, SendTarget to, int tokens, const KvLayout& layout, std::vector<BlockLease> leases)
      : sequence(local),
        target(std::move(to)),
        attentions_(layout.attentions),
        row_bytes_(layout.row_bytes()),
        first_block_(target.cached_tokens / kBlockTokens),
        tokens_(tokens),
        leases_(std::move(leases)),
        released_(leases_.size()),
        due_(static_cast<size_t>(attentions_)),
        acknowledged_(leases_.size()),
        resends_(leases_.size() * static_cast<size_t>(attentions_)) {
    // A prefix hit can go at once.
    int ready = 0;
    while (ready < static_cast<int>(leases_.size()) && leases_[static_cast<size_t>(ready)].readable) ++ready;
    written.assign(static_cast<size_t>(attentions_), std::min(tokens, (first_block_ + ready) * kBlockTokens));
    ready_ = written;
  }

  const SequenceRef sequence;
  const SendTarget target;
  std::vector<int> written;  // rows per attention, as the engine told
  bool aborted = false;
  bool listed = false;  // among the sender's news
  bool over = false;
  int reconnects = 0;

  void Refresh() { ready_ = written; }

  // The next page to announce, announced from now on.
  std::optional<Page> Next() {
    if (!again_.empty()) {
      const Page page = again_.front();
      again_.pop_front();
      return page;
    }
    for (int attention = 0; attention < attentions_; ++attention) {
      int& next = due_[static_cast<size_t>(attention)];
      if (next == static_cast<int>(leases_.size())) continue;
      if ((first_block_ + next) * kBlockTokens + End(next) > ready_[static_cast<size_t>(attention)]) continue;
      return Page{attention, next++};
    }
    return std::nullopt;
  }

  FrameHead Describe(Page page) {
    if (!started_) started_ = std::chrono::steady_clock::now();
    const BlockLease& lease = leases_[static_cast<size_t>(page.index)];
    FrameHead head;
    head.epoch = target.epoch;
    head.sequence = target.remote;
    head.attention = page.attention;
    head.block = first_block_ + page.index;
    head.first_row = FirstRow(page.index);
    head.rows = End(page.index) - head.first_row;
    head.payload_bytes = static_cast<uint32_t>(static_cast<size_t>(head.rows) * row_bytes_);
    head.source_block = lease.block;
    head.source_generation = lease.generation;
    return head;
  }

  void Again(Page page) { again_.push_back(page); }
  // False when the page was damaged once too often.
  bool Damaged(Page page) {
    const size_t at =
        static_cast<size_t>(page.index) * static_cast<size_t>(attentions_) + static_cast<size_t>(page.attention);
    if (++resends_[at] > kResends) return false;
    Again(page);
    return true;
  }
  // The block's lease when this was its last page.
  std::optional<BlockLease> Acknowledge(Page page, uint64_t bytes) {
    const auto index = static_cast<size_t>(page.index);
    ++pages_;
    bytes_ += bytes;
    if (++acknowledged_[index] < attentions_) return std::nullopt;
    released_[index] = 1;
    return leases_[index];
  }
  bool complete() const { return pages_ == resends_.size(); }
  std::vector<BlockLease> Unreleased() const {
    std::vector<BlockLease> rest;
    for (size_t i = 0; i < leases_.size(); ++i) {
      if (released_[i] == 0) rest.push_back(leases_[i]);
    }
    return rest;
  }

  TransferOutcome Report(const std::string& cause) const {
    TransferOutcome outcome;
    outcome.sequence = sequence;
    outcome.ok = cause.empty();
    outcome.cause = cause;
    outcome.pages = pages_;
    outcome.bytes = bytes_;
    if (started_) {
      outcome.ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - *started_).count();
    }
    return outcome;
  }

 private:
  // Rows of a block that D lacks: of the first one it may have some.
  int FirstRow(int index) const { return index == 0 ? target.cached_tokens % kBlockTokens : 0; }
  int End(int index) const { return std::min(kBlockTokens, tokens_ - (first_block_ + index) * kBlockTokens); }

  const int attentions_;
  const size_t row_bytes_;
  const int first_block_;
  const int tokens_;
  const std::vector<BlockLease> leases_;
  std::vector<uint8_t> released_;
  std::vector<int> ready_;
  std::vector<int> due_;  // per attention: next block never announced
  std::deque<Page> again_;
  std::vector<int> acknowledged_;  // pages per block
  std::vector<uint8_t> resends_;   // per page
  size_t pages_ = 0;
  uint64_t bytes_ = 0;
  std::optional<std::chrono::steady_clock::time_point> started_;
};

}  // namespace margay
