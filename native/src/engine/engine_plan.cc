// What a plan may say, and the batch it changes.
#include <algorithm>
#include <string>
#include <utility>

#include "engine/engine.h"

namespace margay {
namespace {

std::string Number(int64_t value) { return std::to_string(value); }

}  // namespace

Engine::Plan Engine::ReadPlan(std::span<const int32_t> values) {
  Plan plan;
  plan.entries.reserve(values.size() / kPlanEntryWidth);
  for (size_t at = 0; at < values.size(); at += kPlanEntryWidth) {
    plan.entries.push_back({{values[at], values[at + 1]}, values[at + 2], values[at + 3]});
  }
  return plan;
}

Status Engine::CheckPlan(const Plan& plan) {
  ++seen_stamp_;
  int64_t rows = 0;       // of this step
  int64_t batch = will_run_;  // after this plan
  for (const PlanEntry& entry : plan.entries) {
    Result<Sequence*> found = Find(entry.ref);
    if (!found.ok()) return found.status();
    const Sequence& sequence = **found;
    uint64_t& stamp = seen_[static_cast<size_t>(entry.ref.slot)];
    if (stamp == seen_stamp_) return {Code::kBadArgument, "slot " + Number(entry.ref.slot) + " is planned twice"};
    stamp = seen_stamp_;
    if (Status good = CheckEntry(entry, sequence); !good.ok()) return good;
    if (sequence.ended()) continue;
    rows += entry.rows;
    if (entry.joins() && !sequence.will_run) ++batch;
    if (entry.joins() && entry.rows > 0) --rows;  // it is counted with the batch, of which it has one row
    if (entry.leaves() && sequence.will_run) --batch;
  }
  if (rows + batch > options_.model.max_rows) {
    return {Code::kBadArgument, Number(rows) + " rows and a batch of " + Number(batch) + ", where a step holds " +
                                    Number(options_.model.max_rows)};
  }
  return Status::Ok();
}

Status Engine::CheckEntry(const PlanEntry& entry, const Sequence& sequence) const {
  const std::string slot = "slot " + Number(entry.ref.slot);
  if (sequence.phase != Sequence::Phase::kRunnable) return {Code::kBadState, slot + " waits for pages"};
  if (entry.rows < 0 || entry.reserve < 0) return {Code::kBadArgument, slot + " has a negative number of rows"};
  if (sequence.ended()) return Status::Ok();  // will be skipped
  if (entry.rows > 0 && sequence.will_run) return {Code::kBadState, slot + " is in the batch: its rows are not planned"};
  const int64_t known = static_cast<int64_t>(sequence.tokens.size()) + sequence.planned_tokens;
  const int64_t left = std::min<int64_t>(known, sequence.capacity) - sequence.length - sequence.planned_rows;
  if (entry.rows > 0 && entry.rows > left) {
    return {Code::kBadArgument, slot + " has " + Number(left) + " rows to compute, not " + Number(entry.rows)};
  }
  // The last given row may wait in the batch, for the mask of the token that it gives.
  const int needed = sequence.masked ? sequence.given - 1 : sequence.given;
  if (entry.joins() && sequence.length + sequence.planned_rows + entry.rows < needed) {
    return {Code::kBadArgument, slot + " cannot decode before its given tokens are computed"};
  }
  return Status::Ok();
}

// Blocks for every sequence that is to grow, or for none.
Status Engine::Reserve(const Plan& plan, std::unique_lock<std::mutex>* lock) {
  const auto blocks = [](int tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; };
  growing_.clear();
  int more = 0;
  for (const PlanEntry& entry : plan.entries) {
    Sequence* sequence = sequences_.Find(entry.ref);
    const int capacity = std::clamp(entry.reserve, sequence->capacity, std::max(sequence->capacity, sequence->token_limit));
    if (sequence->ended() || capacity == sequence->capacity) continue;
    growing_.push_back({sequence, capacity});
    more += blocks(capacity) - blocks(sequence->capacity);
  }
  const int available = more == 0 ? 0 : pool_->Available();
  if (more > available) {
    return {Code::kNoBlocks, Number(more) + " blocks needed to grow, " + Number(available) + " available"};
  }
  // What is available now is so below, and no sequence goes away meanwhile (E6).
  if (more > 0) lock->unlock();
  Status grown;
  for (const Growth& growth : growing_) {
    if (grown.ok()) grown = pool_->Grow(growth.sequence->kv, growth.capacity);
  }
  if (more > 0) lock->lock();
  if (!grown.ok()) return grown;
  for (const Growth& growth : growing_) {
    growth.sequence->capacity = growth.capacity;
    growth.sequence->table = pool_->BlockTable(growth.sequence->kv);
  }
  if (more > 0) EmitCacheChanges();
  return Status::Ok();
}

void Engine::Queue(Plan plan) {
  for (const PlanEntry& entry : plan.entries) {
    Sequence* sequence = sequences_.Find(entry.ref);
    if (sequence->ended()) continue;
    if (entry.rows > 0) {
      sequence->planned_rows += entry.rows;
      const int known = static_cast<int>(sequence->tokens.size()) + sequence->planned_tokens;
      if (Sequence::Produces(sequence->length + sequence->planned_rows, known)) ++sequence->planned_tokens;
    }
    if (entry.joins()) SetWillRun(sequence, true);
    if (entry.leaves()) SetWillRun(sequence, false);
  }
  queue_.push_back(std::move(plan));
}

Result<int64_t> Engine::Submit(std::span<const int32_t> values) {
  constexpr size_t kQueueDepth = 2;
  if (values.empty() || values.size() % kPlanEntryWidth != 0) {
    return Status(Code::kBadArgument, "a plan has one or more entries of " + Number(kPlanEntryWidth) + " values");
  }
  Plan plan = ReadPlan(values);
  int64_t number;
  {
    std::unique_lock lock(mutex_);
    if (Status usable = CheckUsable(); !usable.ok()) return usable;
    if (queue_.size() >= kQueueDepth) return Status(Code::kQueueFull, "two plans are queued");
    // Steps that end while blocks are copied take rows and sequences away, in the plan's favour.
    if (Status good = CheckPlan(plan); !good.ok()) return good;
    if (Status reserved = Reserve(plan, &lock); !reserved.ok()) return reserved;
    number = plan.number = next_plan_++;
    Queue(std::move(plan));
  }
  work_.notify_one();
  return number;
}

Status Engine::SetMask(SequenceRef ref, std::optional<std::vector<uint32_t>> mask) {
  {
    std::lock_guard lock(mutex_);
    Result<Sequence*> found = Find(ref);
    if (!found.ok()) return found.status();
    const auto words = static_cast<size_t>((facts_.vocab_size + kMaskBits - 1) / kMaskBits);
    const bool awaited = mask.has_value() && mask->empty();
    if (mask.has_value() && !awaited) {
      if (mask->size() != words) {
        return {Code::kBadArgument, "a mask of " + Number(static_cast<int64_t>(mask->size())) +
                                        " words, where a vocabulary of " + Number(facts_.vocab_size) + " takes " +
                                        Number(static_cast<int64_t>(words))};
      }
      const int beyond = static_cast<int>(words) * kMaskBits - facts_.vocab_size;
      mask->back() &= ~uint32_t{0} >> beyond;
      if (std::all_of(mask->begin(), mask->end(), [](uint32_t word) { return word == 0; })) {
        return {Code::kBadArgument, "a mask allows no token"};
      }
    }
    Sequence* sequence = *found;
    sequence->masked = mask.has_value();
    sequence->mask_ready = mask.has_value() && !awaited;
    sequence->next_mask = mask.has_value() ? std::move(*mask) : std::vector<uint32_t>();
  }
  work_.notify_one();
  return Status::Ok();
}

void Engine::SetWillRun(Sequence* sequence, bool will_run) {
  if (sequence->will_run == will_run) return;
  sequence->will_run = will_run;
  will_run_ += will_run ? 1 : -1;
}

void Engine::Join(Sequence* sequence) {
  if (sequence->batched) return;
  sequence->batched = true;
  batch_.push_back(sequence);
}

void Engine::Leave(Sequence* sequence) {
  if (!sequence->batched) return;
  sequence->batched = false;
  std::erase(batch_, sequence);
}

// A plan waits, or the batch can be repeated.
bool Engine::HasStep() const {
  if (!queue_.empty()) return true;
  return outbox_.steps() < kMostUntoldSteps &&
         std::any_of(batch_.begin(), batch_.end(), [](const Sequence* sequence) { return sequence->Decodes(); });
}

}  // namespace margay
