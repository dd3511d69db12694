#include "transport/expectations.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/socket.h"

namespace margay {
namespace {

int64_t SteadyUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

Expectations::~Expectations() {
  for (auto& [slot, entry] : entries_) Release(*entry);
}

void Expectations::Release(Entry& entry) {
  pool_->EndFlight(entry.leases, Flight::kIn);
  entry.leases.clear();
}

Expectations::Entry* Expectations::Find(SequenceRef sequence) const {
  const auto found = entries_.find(sequence.slot);
  if (found == entries_.end() || found->second->sequence.generation != sequence.generation) return nullptr;
  return found->second.get();
}

Status Expectations::Expect(SequenceRef sequence, SequenceKvId kv, int cached_tokens, int tokens, int64_t deadline_ms) {
  if (cached_tokens < 0 || tokens <= cached_tokens) {
    return {Code::kBadArgument, "pages are expected for at least one token"};
  }
  auto entry = std::make_unique<Entry>();
  entry->sequence = sequence;
  entry->first_block = cached_tokens / kBlockTokens;
  entry->first_row = cached_tokens % kBlockTokens;
  entry->tokens = tokens;
  entry->deadline_ms = deadline_ms;
  const int blocks = (tokens + kBlockTokens - 1) / kBlockTokens - entry->first_block;
  entry->missing = static_cast<size_t>(blocks) * static_cast<size_t>(memory_.layout.attentions);
  entry->arrived.resize(entry->missing);
  entry->block_arrived.resize(static_cast<size_t>(blocks));

  std::lock_guard lock(mutex_);
  if (entries_.contains(sequence.slot)) return {Code::kBadState, "the slot still expects pages of another sequence"};
  Result<std::vector<BlockLease>> leases = pool_->StartFlight(kv, entry->first_block, blocks, Flight::kIn);
  if (!leases.ok()) return leases.status();
  entry->leases = std::move(*leases);
  entries_.emplace(sequence.slot, std::move(entry));
  return Status::Ok();
}

void Expectations::Forget(SequenceRef sequence) {
  std::unique_lock lock(mutex_);
  Entry* entry = Find(sequence);
  if (entry == nullptr) return;
  // Taken out first, so that nothing more is claimed; a claim in progress keeps only the pointer to its page.
  const std::unique_ptr<Entry> mine = std::move(entries_.extract(sequence.slot).mapped());
  finished_.wait(lock, [&] { return !claimed_.has_value() || !Same(*claimed_, sequence); });
  Release(*mine);
}

Expectations::Verdict Expectations::JudgeLocked(const FrameHead& page) const {
  const auto refuse = [](FrameRefusal cause) { return Verdict{cause, false}; };
  const Entry* entry = Find(page.sequence);
  if (entry == nullptr) return refuse(FrameRefusal::kStaleHandle);
  if (entry->state == Entry::State::kFailed) return refuse(FrameRefusal::kLate);
  const bool known = page.attention >= 0 && page.attention < memory_.layout.attentions &&
                     page.block >= entry->first_block &&
                     page.block - entry->first_block < static_cast<int>(entry->block_arrived.size());
  if (!known) return refuse(FrameRefusal::kUnknownPage);
  const int block = page.block - entry->first_block;
  const int first_row = block == 0 ? entry->first_row : 0;
  const int end = std::min(kBlockTokens, entry->tokens - page.block * kBlockTokens);
  if (page.first_row != first_row || page.rows != end - first_row) {
    return refuse(FrameRefusal::kUnknownPage);
  }
  if (entry->arrived[PageIndex(block, page.attention)] != 0) return {std::nullopt, true};
  if (NowMs() >= entry->deadline_ms) return refuse(FrameRefusal::kLate);
  if (page.payload_bytes != static_cast<size_t>(page.rows) * memory_.layout.row_bytes()) {
    return refuse(FrameRefusal::kTruncated);
  }
  return {};
}

Expectations::Verdict Expectations::Judge(const FrameHead& page) const {
  std::lock_guard lock(mutex_);
  return JudgeLocked(page);
}

Expectations::Claim Expectations::Take(const FrameHead& page) {
  std::lock_guard lock(mutex_);
  const Verdict verdict = JudgeLocked(page);
  if (!verdict.wanted()) return {verdict, nullptr};
  Entry& entry = *Find(page.sequence);
  const BlockLease& lease = entry.leases[static_cast<size_t>(page.block - entry.first_block)];
  if (!pool_->MarkReceiving(lease)) return {{FrameRefusal::kStaleHandle, false}, nullptr};
  if (entry.first_us == 0) entry.first_us = SteadyUs();
  claimed_ = page.sequence;
  return {verdict, memory_.row(page.attention, lease.block, page.first_row)};
}

bool Expectations::Finish(const FrameHead& page, bool good, std::optional<TransferOutcome>* outcome) {
  std::lock_guard lock(mutex_);
  claimed_.reset();
  finished_.notify_all();
  Entry* entry = Find(page.sequence);
  if (entry == nullptr) return false;
  if (!good) return true;
  const auto block = static_cast<size_t>(page.block - entry->first_block);
  entry->arrived[PageIndex(static_cast<int>(block), page.attention)] = 1;
  entry->bytes += page.payload_bytes;
  --entry->missing;
  if (++entry->block_arrived[block] == memory_.layout.attentions) pool_->MarkReceived(entry->leases[block]);
  if (entry->missing == 0) {
    entry->state = Entry::State::kComplete;
    Release(*entry);
    *outcome = Report(*entry, true);
  }
  return true;
}

TransferOutcome Expectations::Report(const Entry& entry, bool ok) const {
  TransferOutcome outcome;
  outcome.sequence = entry.sequence;
  outcome.ok = ok;
  if (!ok) outcome.cause = "deadline";
  outcome.pages = entry.arrived.size() - entry.missing;
  outcome.bytes = entry.bytes;
  outcome.ms = entry.first_us == 0 ? 0 : static_cast<double>(SteadyUs() - entry.first_us) / 1000;
  return outcome;
}

std::vector<TransferOutcome> Expectations::Expire(int64_t now_ms) {
  std::vector<TransferOutcome> outcomes;
  std::lock_guard lock(mutex_);
  for (auto& [slot, entry] : entries_) {
    if (entry->state != Entry::State::kExpected || now_ms < entry->deadline_ms) continue;
    entry->state = Entry::State::kFailed;
    Release(*entry);
    outcomes.push_back(Report(*entry, false));
  }
  return outcomes;
}

int64_t Expectations::NextDeadline() const {
  std::lock_guard lock(mutex_);
  int64_t next = -1;
  for (const auto& [slot, entry] : entries_) {
    if (entry->state != Entry::State::kExpected) continue;
    if (next < 0 || entry->deadline_ms < next) next = entry->deadline_ms;
  }
  return next;
}

}  // namespace margay
