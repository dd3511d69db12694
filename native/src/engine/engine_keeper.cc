// What the keeper does with outcomes of the transport and with reservations past their deadline.
#include <algorithm>

#include "engine/engine.h"

namespace margay {

void Engine::TakeOutcome(const TransferOutcome& outcome) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  if (sender_ != nullptr) {
    Sequence* sequence = sequences_.FindRetired(outcome.sequence);
    if (sequence == nullptr || !sequence->exporting) return;
    sequence->exporting = false;
    outbox_.Put(TransferEvent{true, outcome});
    ReleaseIfIdle(sequence);
    EmitCacheChanges();
    return;
  }
  Sequence* sequence = sequences_.Find(outcome.sequence);
  if (sequence == nullptr || sequence->phase != Sequence::Phase::kWaiting) return;
  if (outcome.ok) sequence->phase = Sequence::Phase::kReceived;
  // Past its deadline the sequence lapses, and that is told.
  const bool late = static_cast<int64_t>(EpochMs()) >= sequence->deadline_ms;
  if (outcome.ok || !late) outbox_.Put(TransferEvent{false, outcome});
}

int64_t Engine::LapseAndFindNextDeadline(int64_t now_ms) {
  std::lock_guard lock(mutex_);
  int64_t next_ms = Keeper::kNever;
  if (stopping_) return next_ms;
  for (int slot = 0; slot < sequences_.slots(); ++slot) {
    Sequence* sequence = sequences_.At(slot);
    if (sequence == nullptr || sequence->closing || sequence->phase == Sequence::Phase::kRunnable) continue;
    if (sequence->deadline_ms > now_ms) {
      next_ms = std::min(next_ms, sequence->deadline_ms);
      continue;
    }
    outbox_.Put(LapsedEvent{sequence->ref});
    End(sequence, true);
  }
  EmitCacheChanges();
  return next_ms;
}

}  // namespace margay
