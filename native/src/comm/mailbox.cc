#include "comm/mailbox.h"

#include <algorithm>

namespace margay {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kPage = 4096;

size_t RoundUp(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Waiting Waiting::Unpack(uint64_t word) {
  Waiting waiting;
  waiting.what = static_cast<For>(word & 3U);
  waiting.member = static_cast<int>(word >> 8 & 0xffff);
  waiting.number = static_cast<uint32_t>(word >> 32);
  return waiting;
}

MailboxLayout::MailboxLayout(const GroupSpec& spec)
    : members_(spec.members.size()), max_rows_(static_cast<size_t>(spec.max_rows)) {
  const size_t choices = std::min(static_cast<size_t>(spec.topk), spec.owners.size());
  row_stride_ = RoundUp(PayloadBytes(spec.payload, spec.hidden), kLine);
  result_stride_ = RoundUp(ResultBytes(spec.payload, spec.hidden), kLine);
  list_entries_ = max_rows_ * choices;
  list_stride_ = RoundUp(list_entries_ * sizeof(ListEntry), kLine);
  results_ = spec.combine == CombineMode::kSummed ? max_rows_ : list_entries_;
  list_heads_ = RoundUp(sizeof(MailboxHead), kLine);
  lists_ = RoundUp(list_heads_ + 2 * members_ * sizeof(ListHead), kPage);
  rows_ = RoundUp(lists_ + 2 * members_ * list_stride_, kPage);
  results_at_ = RoundUp(rows_ + 2 * max_rows_ * row_stride_, kPage);
  bytes_ = RoundUp(results_at_ + members_ * results_ * result_stride_, kPage);
}

}  // namespace margay
