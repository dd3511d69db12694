// The engine thread: takes the oldest plan, computes it, says what came of it.
#include <algorithm>
#include <chrono>
#include <utility>

#include "core/thread_name.h"
#include "engine/engine.h"

namespace margay {

void Engine::StepLoop() {
  NameThread("margay-engine");
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    const auto start = std::chrono::steady_clock::now();
    StepReport report;
    report.start_ms = EpochMs();
    // Calls push to the queue's back only: the front stays where it is.
    const Plan& plan = queue_.front();
    Prepare(plan);

    lock.unlock();
    const Status computed = Compute();
    if (computed.ok()) SampleTokens();
    lock.lock();

    if (stopping_) return;
    if (!computed.ok()) {
      failed_ = true;
      outbox_.Put(FatalReport{computed.message()});
      return;
    }
    Settle(plan, &report);
    report.compute_ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    counters_.compute_ms += report.compute_ms;
    ++counters_.steps;
    queue_.pop_front();
    EmitCacheChanges();
    outbox_.Put(std::move(report));
  }
}

void Engine::Prepare(const Plan& plan) {
  jobs_.clear();
  rows_.clear();
  for (const PlanEntry& entry : plan.entries) {
    Job& job = jobs_.emplace_back();
    Sequence* sequence = sequences_.Find(entry.ref);
    if (sequence == nullptr || sequence->finish != Finish::kNone) continue;
    sequence->running = true;
    job.sequence = sequence;
    job.rows = entry.rows;
    job.produces = Sequence::Produces(sequence->length + entry.rows, static_cast<int>(sequence->tokens.size()));
    job.exporting = sequence->exporting;
    SequenceRows rows;
    rows.tokens = sequence->tokens.data() + sequence->length;
    rows.count = entry.rows;
    rows.position = sequence->length;
    rows.block_table = sequence->table.data();
    rows.logits_rows = job.produces ? 1 : 0;
    rows_.push_back(rows);
  }
}

Status Engine::Compute() {
  if (rows_.empty()) return Status::Ok();
  return model_->Forward(rows_, pool_->memory(), attention_done_, logits_.data());
}

void Engine::SampleTokens() {
  const auto vocab = static_cast<size_t>(facts_.vocab_size);
  float* logits = logits_.data();
  for (Job& job : jobs_) {
    if (!job.produces) continue;
    const Sequence& sequence = *job.sequence;
    job.sampled = Sample({logits, vocab}, sequence.sampling, sequence.tokens, sequence.prompt_length,
                         static_cast<int>(sequence.tokens.size()));
    logits += vocab;
  }
}

void Engine::Settle(const Plan& plan, StepReport* report) {
  report->step = plan.number;
  report->entries.reserve(jobs_.size() * kStepEntryWidth);
  for (size_t i = 0; i < jobs_.size(); ++i) {
    Job& job = jobs_[i];
    const SequenceRef ref = plan.entries[i].ref;
    Sequence* sequence = job.sequence;
    bool skipped = sequence == nullptr;
    int32_t token = -1;
    if (!skipped) {
      const int from = sequence->length;
      sequence->running = false;
      sequence->length += job.rows;
      sequence->planned_rows -= job.rows;
      if (job.produces) --sequence->planned_tokens;
      const int prompt_rows = std::min(sequence->length, sequence->given) - std::min(from, sequence->given);
      counters_.prefill_tokens += static_cast<uint64_t>(prompt_rows);
      counters_.decode_tokens += static_cast<uint64_t>(job.rows - prompt_rows);
      // The send began while this step ran: nobody has told of its rows yet.
      if (sequence->exporting && !job.exporting) AnnounceWritten(*sequence);
      // Rows that gave no number are shared with nobody.
      const bool sound = !job.produces || job.sampled.token >= 0;
      if (sound && (!sequence->closing || sequence->keep)) {
        pool_->Advance(sequence->kv, sequence->tokens, sequence->length);
      }
      skipped = sequence->closing;
    }
    if (skipped) {
      report->entries.insert(report->entries.end(),
                             {ref.slot, ref.generation, 0, -1, static_cast<int32_t>(Finish::kSkipped), 0});
      if (sequence != nullptr) ReleaseIfIdle(sequence);
      continue;
    }
    if (job.produces) token = TakeToken(sequence, &job.sampled, report);
    report->entries.insert(report->entries.end(), {ref.slot, ref.generation, job.rows, token,
                                                   static_cast<int32_t>(sequence->finish), sequence->length});
  }
}

int32_t Engine::TakeToken(Sequence* sequence, Sampled* sampled, StepReport* report) {
  const int32_t token = sampled->token;
  if (token < 0) {
    sequence->finish = Finish::kNumeric;
    return token;
  }
  const bool stops = sequence->Stops(token);
  sequence->tokens.push_back(token);
  const auto known = static_cast<int>(sequence->tokens.size());
  if (stops) {
    sequence->finish = Finish::kStop;
  } else if (known >= sequence->token_limit) {
    sequence->finish = Finish::kLength;
  }
  if (known >= sequence->min_tokens) sequence->sampling.banned.clear();
  if (sequence->sampling.top_logprobs >= 0) {
    report->logprobs.push_back({sequence->ref.slot, sampled->logprob, std::move(sampled->top_ids),
                                std::move(sampled->top_logprobs)});
  }
  return token;
}

}  // namespace margay
