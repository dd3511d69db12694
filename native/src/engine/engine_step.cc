// The engine thread: takes the oldest plan, or the batch as it is, computes a step, says what came of it.
#include <algorithm>
#include <chrono>
#include <utility>

#include "core/thread_name.h"
#include "core/trace.h"
#include "engine/engine.h"

namespace margay {

void Engine::StepLoop() {
  NameThread("margay-engine");
  if (model_->pool() != nullptr) model_->pool()->PinCaller();
  std::unique_lock lock(mutex_);
  while (true) {
    if (!HasStep()) outbox_.Ring();
    work_.wait(lock, [this] { return stopping_ || (seat_ == nullptr ? HasStep() : HasGroupStep()); });
    if (stopping_) return;
    const trace::Span span("step");
    const auto start = std::chrono::steady_clock::now();
    StepReport report;
    report.start_ms = EpochMs();
    // Who leaves a group brings no rows any more.
    const bool leaving = seat_ != nullptr && !seat_->leaving.empty();
    const bool planned = !leaving && !queue_.empty();
    jobs_.clear();
    rows_.clear();
    verified_.clear();
    step_rows_ = 0;
    if (seat_ != nullptr && seat_->lost) {
      LoseStep(false, &lock);
      continue;
    }
    if (leaving) seat_->leave_offered = true;
    if (planned) {
      report.plan = queue_.front().number;
      PreparePlan(queue_.front());
    }
    if (!leaving) PrepareBatch();
    const bool serves = leaving || MustServe();

    lock.unlock();
    const Status computed = Compute(serves);
    lock.lock();

    if (stopping_) return;
    if (computed.code() == Code::kGroupLost) {
      LoseStep(planned, &lock);
      continue;
    }
    if (!computed.ok()) {
      failed_ = true;
      outbox_.Put(FatalReport{computed.message()});
      return;
    }
    if (leaving && seat_->exchange->map_version() == kLeaveVersion) EndGroup(&lock, [] {});
    if (jobs_.empty() && !planned) continue;  // it served the others alone
    // Until here it counts as queued.
    if (planned) queue_.pop_front();
    Settle(&report);
    report.step = static_cast<int64_t>(counters_.steps++);
    report.compute_ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    counters_.compute_ms += report.compute_ms;
    EmitCacheChanges();
    Tell(std::move(report));
  }
}

// Waking the listener takes a core from the model. Steps of an unchanged batch that are short against what anybody can
// see are told several at once; a plan's step, an end, and whatever else is awaited is told with its step.
void Engine::Tell(StepReport report) {
  constexpr double kMostHeldMs = 8;
  held_ms_ = (outbox_.steps() == 0 ? 0 : held_ms_) + report.compute_ms;
  const bool repeats = report.plan < 0 && queue_.empty();
  const bool in_time = held_ms_ + report.compute_ms <= kMostHeldMs;  // also if it is told with the next step
  const bool waits = repeats && in_time && !report.awaited;
  outbox_.Hold(std::move(report));
  if (!waits) outbox_.Ring();
}

// Who leaves and joins the batch, and the rows of those who are not in it. One that joins with rows decodes from the
// next step on.
void Engine::PreparePlan(const Plan& plan) {
  for (const PlanEntry& entry : plan.entries) {
    Sequence* sequence = sequences_.Find(entry.ref);
    if (sequence != nullptr && sequence->ended()) sequence = nullptr;
    if (sequence != nullptr && entry.joins()) Join(sequence);
    if (sequence != nullptr && entry.leaves()) Leave(sequence);
    if (entry.rows > 0) AddJob(entry.ref, sequence, entry.rows, 0, true);
  }
}

// A row for everyone, then drafts as far as the step has room.
void Engine::PrepareBatch() {
  const auto decodes = [](const Sequence* sequence) { return !sequence->running && sequence->Decodes(); };
  auto spare = options_.model.max_rows - step_rows_;
  spare -= static_cast<int>(std::count_if(batch_.begin(), batch_.end(), decodes));
  for (Sequence* sequence : batch_) {
    if (!decodes(sequence)) continue;
    const int drafts =
        sequence->masked ? 0 : std::clamp(static_cast<int>(sequence->drafts.size()), 0, std::max(spare, 0));
    spare -= drafts;
    AddJob(sequence->ref, sequence, static_cast<int>(sequence->tokens.size()) - sequence->length + drafts, drafts, false);
  }
}

void Engine::AddJob(SequenceRef ref, Sequence* sequence, int rows, int drafts, bool planned) {
  Job& job = jobs_.emplace_back();
  job.ref = ref;
  if (sequence == nullptr) return;
  const auto produces = [&] {
    return Sequence::Produces(sequence->length + rows - drafts, static_cast<int>(sequence->tokens.size()));
  };
  if (planned && produces() && sequence->WaitsForMask()) {
    // The last row waits with the token that it gives: the batch computes it when the mask is there.
    --rows;
    --sequence->planned_rows;
    --sequence->planned_tokens;
  }
  // Steps of the batch may have used up the reserved rows since the plan was made.
  if (rows == 0 || sequence->length + rows > sequence->capacity) {
    sequence->planned_rows -= rows;
    if (rows > 0 && produces()) --sequence->planned_tokens;
    return;
  }
  sequence->running = true;
  job.sequence = sequence;
  job.rows = rows;
  job.drafts = drafts;
  job.first_row = step_rows_;
  job.input = rows_.size();
  job.capacity = sequence->capacity;
  job.planned = planned;
  job.batched = sequence->batched;
  job.produces = produces();
  job.masked = sequence->masked;
  if (job.produces) TakeMask(sequence);
  job.exporting = sequence->exporting;
  step_rows_ += rows;
  SequenceRows& input = rows_.emplace_back();
  input.tokens = sequence->tokens.data() + sequence->length;
  if (drafts > 0) {
    // One token of the batch is known, the others are drafts: side by side they have no place yet.
    input.tokens = verified_.data() + verified_.size();
    verified_.push_back(sequence->tokens.back());
    verified_.insert(verified_.end(), sequence->drafts.begin(), sequence->drafts.begin() + drafts);
  }
  input.count = rows;
  input.position = sequence->length;
  input.block_table = sequence->table.data();
  input.logits_rows = job.produces ? 1 + drafts : 0;
}

void Engine::TakeMask(Sequence* sequence) {
  sequence->sampling.allowed = {};
  if (!sequence->masked) return;
  std::swap(sequence->mask, sequence->next_mask);
  sequence->mask_ready = false;
  sequence->sampling.allowed = sequence->mask;
}

bool Engine::OnlyBatch() const {
  return std::none_of(jobs_.begin(), jobs_.end(), [](const Job& job) { return job.planned; });
}

Status Engine::Compute(bool serves) {
  if (rows_.empty() && !serves) return Status::Ok();
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point then) { return std::chrono::duration<double, std::milli>(Clock::now() - then).count(); };
  const auto start = Clock::now();
  {
    const trace::Span span("forward");
    if (Status run = model_->Forward(rows_, pool_->memory(), attention_done_, logits_.data()); !run.ok()) return run;
  }
  if (rows_.empty()) return Status::Ok();
  SampleTokens();
  if (!facts_.drafts) return Status::Ok();
  if (sender_ != nullptr) TellFirstTokens(since(start));
  const bool measured = OnlyBatch();
  if (measured) policy_.StepTook(step_rows_, since(start));
  const auto drafting = Clock::now();
  if (Status drafted = RunDraftLayer(); !drafted.ok()) return drafted;
  if (measured) policy_.PassTook(static_cast<int>(jobs_.size()), static_cast<int>(candidates_.size()), since(drafting));
  return Status::Ok();
}

// The client waits for nothing more than the token: the draft layer's rows, which the decode rank needs, come after it.
void Engine::TellFirstTokens(double ms) {
  std::lock_guard lock(mutex_);
  for (const Job& job : jobs_) {
    if (job.sequence == nullptr || job.sampled == 0 || job.sequence->closing) continue;
    const Sampled& sampled = sampled_[job.first_sampled];
    if (sampled.token < 0) continue;
    const auto known = static_cast<int>(job.sequence->tokens.size());
    const bool stops = job.sequence->Stops(sampled.token, known);
    FirstToken first{.sequence = job.ref, .token = sampled.token, .finish = Finish::kNone, .compute_ms = ms, .logprobs = {}};
    if (job.ends) first.finish = stops ? Finish::kStop : Finish::kLength;
    if (job.sequence->sampling.top_logprobs >= 0) {
      first.logprobs = {job.ref.slot, sampled.logprob, sampled.top_ids, sampled.top_logprobs};
    }
    outbox_.Put(std::move(first));
  }
}

void Engine::SampleTokens() {
  const trace::Span span("sample");
  size_t rows = 0;
  for (Job& job : jobs_) {
    job.first_sampled = rows;
    if (job.produces) rows += static_cast<size_t>(1 + job.drafts);
  }
  sampled_.resize(rows);
  ForEach(jobs_.size(), rows, [&](size_t job, size_t thread) {
    if (jobs_[job].produces) SampleJob(&jobs_[job], thread);
  });
}

// Draws tokens until one is the last, or is not the one that was drafted.
void Engine::SampleJob(Job* job, size_t thread) {
  const Sequence& sequence = *job->sequence;
  const auto vocab = static_cast<size_t>(facts_.vocab_size);
  const int32_t* drafts = rows_[job->input].tokens + (job->rows - job->drafts);
  float* logits = logits_.data() + job->first_sampled * vocab;
  for (int i = 0; i <= job->drafts; ++i, logits += vocab) {
    const int known = static_cast<int>(sequence.tokens.size()) + i;
    Sampled& sampled = sampled_[job->first_sampled + static_cast<size_t>(i)];
    sampled = samplers_[thread].Sample({logits, vocab}, sequence.sampling, HistoryOf(*job, {}, thread), sequence.prompt_length, known);
    ++job->sampled;
    job->ends = sampled.token < 0 || sequence.Stops(sampled.token, known) || known + 1 >= sequence.token_limit;
    if (job->ends || (i < job->drafts && sampled.token != drafts[i])) return;
  }
}

// The tokens of a sequence, those that this step has added, and drafts after them; all but the first only where it
// matters.
std::span<const int32_t> Engine::HistoryOf(const Job& job, std::span<const int32_t> drafts, size_t thread) {
  const Sequence& sequence = *job.sequence;
  if (job.sampled == 0 || !sequence.sampling.UsesHistory()) return sequence.tokens;
  std::vector<int32_t>& history = histories_[thread];
  history.assign(sequence.tokens.begin(), sequence.tokens.end());
  for (int i = 0; i < job.sampled; ++i) history.push_back(sampled_[job.first_sampled + static_cast<size_t>(i)].token);
  history.insert(history.end(), drafts.begin(), drafts.end());
  return history;
}

void Engine::Settle(StepReport* report) {
  report->entries.reserve(jobs_.size() * kStepEntryWidth);
  report->tokens.reserve(jobs_.size());
  for (Job& job : jobs_) SettleJob(&job, report);
}

void Engine::SettleJob(Job* job, StepReport* report) {
  Sequence* sequence = job->sequence;
  const auto tell = [&](int rows, size_t tokens, Finish finish, int length) {
    report->entries.insert(report->entries.end(), {job->ref.slot, job->ref.generation, rows, static_cast<int32_t>(tokens),
                                                   static_cast<int32_t>(finish), length});
  };
  if (sequence == nullptr) return tell(0, 0, Finish::kSkipped, 0);
  const int from = sequence->length;
  sequence->running = false;
  sequence->length += job->kept();
  if (job->planned) {
    sequence->planned_rows -= job->rows;
    if (job->produces) --sequence->planned_tokens;
  }
  const int prompt_rows = std::min(sequence->length, sequence->given) - std::min(from, sequence->given);
  counters_.prefill_tokens += static_cast<uint64_t>(prompt_rows);
  counters_.decode_tokens += static_cast<uint64_t>(job->kept() - prompt_rows);
  counters_.drafts_proposed += static_cast<uint64_t>(job->proposed);
  counters_.drafts_verified += static_cast<uint64_t>(job->drafts);
  counters_.drafts_accepted += static_cast<uint64_t>(std::max(job->sampled - 1, 0));
  if (std::exchange(sequence->drafted, job->proposed > 0)) {
    policy_.Verified(job->drafts, std::max(job->sampled - 1, 0), &sequence->draft_yield);
  } else {
    policy_.SatOut(&sequence->draft_yield);
  }
  // The send began while this step ran: nobody has told of its rows yet.
  if (sequence->exporting && !job->exporting) AnnounceWritten(*sequence);
  const size_t before = report->tokens.size();
  TakeTokens(*job, report);
  // Rows that gave no number are shared with nobody.
  if (sequence->finish != Finish::kNumeric && (!sequence->closing || sequence->keep)) {
    pool_->Advance(sequence->kv, sequence->tokens, sequence->length);
  }
  if (sequence->closing) {
    report->awaited = true;
    tell(0, 0, Finish::kSkipped, 0);
    return ReleaseIfIdle(sequence);
  }
  tell(job->rows, report->tokens.size() - before, sequence->finish, sequence->length);
  // A mask is to be made for the next token, or room.
  report->awaited |= sequence->ended() || sequence->masked || sequence->length >= sequence->capacity;
  if (!sequence->ended()) return;
  Leave(sequence);
  SetWillRun(sequence, false);
}

void Engine::TakeTokens(const Job& job, StepReport* report) {
  Sequence* sequence = job.sequence;
  for (int i = 0; i < job.sampled; ++i) {
    Sampled& sampled = sampled_[job.first_sampled + static_cast<size_t>(i)];
    if (sampled.token < 0) {
      sequence->finish = Finish::kNumeric;
      return;
    }
    const bool stops = sequence->Stops(sampled.token, static_cast<int>(sequence->tokens.size()));
    sequence->tokens.push_back(sampled.token);
    const auto known = static_cast<int>(sequence->tokens.size());
    if (stops) {
      sequence->finish = Finish::kStop;
    } else if (known >= sequence->token_limit) {
      sequence->finish = Finish::kLength;
    }
    if (known >= sequence->min_tokens) sequence->sampling.banned.clear();
    if (sequence->closing) continue;  // nobody listens
    report->tokens.push_back(sampled.token);
    if (sequence->sampling.top_logprobs < 0) continue;
    report->logprobs.push_back(
        {sequence->ref.slot, sampled.logprob, std::move(sampled.top_ids), std::move(sampled.top_logprobs)});
  }
}

}  // namespace margay
