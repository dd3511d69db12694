#include "comm/mailbox.h"

#include <sys/mman.h>

#include <algorithm>
#include <ctime>
#include <utility>

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

int64_t MonotonicNs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
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
  result_heads_ = RoundUp(list_heads_ + 2 * members_ * sizeof(ListHead), kLine);
  lists_ = RoundUp(result_heads_ + members_ * sizeof(ResultHead), kPage);
  rows_ = RoundUp(lists_ + 2 * members_ * list_stride_, kPage);
  results_at_ = RoundUp(rows_ + 2 * max_rows_ * row_stride_, kPage);
  bytes_ = RoundUp(results_at_ + members_ * results_ * result_stride_, kPage);
}

Result<MailboxMemory> MailboxMemory::Create(const MailboxLayout& layout) {
  void* base = mmap(nullptr, layout.bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return Status(Code::kIo, "no memory for a mailbox of " + std::to_string(layout.bytes()) + " bytes");
  return MailboxMemory(static_cast<std::byte*>(base), layout.bytes());
}

MailboxMemory::MailboxMemory(MailboxMemory&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)), bytes_(other.bytes_) {}

MailboxMemory::~MailboxMemory() {
  if (base_ != nullptr) munmap(base_, bytes_);
}

}  // namespace margay
