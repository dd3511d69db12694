// The engine thread: takes the oldest plan, or the batch as it is, computes a step, says what came of it.
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
    work_.wait(lock, [this] { return stopping_ || HasStep(); });
    if (stopping_) return;
    const auto start = std::chrono::steady_clock::now();
    StepReport report;
    report.start_ms = EpochMs();
    const bool planned = !queue_.empty();
    jobs_.clear();
    rows_.clear();
    if (planned) {
      report.plan = queue_.front().number;
      PreparePlan(queue_.front());
    }
    PrepareBatch();

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
    // Until here it counts as queued.
    if (planned) queue_.pop_front();
    Settle(&report);
    report.step = static_cast<int64_t>(counters_.steps++);
    report.compute_ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    counters_.compute_ms += report.compute_ms;
    EmitCacheChanges();
    outbox_.Put(std::move(report));
  }
}

// Who leaves and joins the batch, and the rows of those who are not in it. One that joins with rows decodes from the
// next step on.
void Engine::PreparePlan(const Plan& plan) {
  for (const PlanEntry& entry : plan.entries) {
    Sequence* sequence = sequences_.Find(entry.ref);
    if (sequence != nullptr && sequence->ended()) sequence = nullptr;
    if (entry.rows > 0) AddJob(entry.ref, sequence, entry.rows, true);
    if (sequence == nullptr) continue;
    if (entry.joins()) Join(sequence);
    if (entry.leaves()) Leave(sequence);
  }
}

void Engine::PrepareBatch() {
  for (Sequence* sequence : batch_) {
    if (sequence->running || !sequence->Decodes()) continue;
    AddJob(sequence->ref, sequence, static_cast<int>(sequence->tokens.size()) - sequence->length, false);
  }
}

void Engine::AddJob(SequenceRef ref, Sequence* sequence, int rows, bool planned) {
  Job& job = jobs_.emplace_back();
  job.ref = ref;
  // Steps of the batch may have used up the reserved rows since the plan was made.
  if (sequence == nullptr || sequence->length + rows > sequence->capacity) return;
  sequence->running = true;
  job.sequence = sequence;
  job.rows = rows;
  job.planned = planned;
  job.produces = Sequence::Produces(sequence->length + rows, static_cast<int>(sequence->tokens.size()));
  job.exporting = sequence->exporting;
  SequenceRows& input = rows_.emplace_back();
  input.tokens = sequence->tokens.data() + sequence->length;
  input.count = rows;
  input.position = sequence->length;
  input.block_table = sequence->table.data();
  input.logits_rows = job.produces ? 1 : 0;
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
  sequence->length += job->rows;
  if (job->planned) {
    sequence->planned_rows -= job->rows;
    if (job->produces) --sequence->planned_tokens;
  }
  const int prompt_rows = std::min(sequence->length, sequence->given) - std::min(from, sequence->given);
  counters_.prefill_tokens += static_cast<uint64_t>(prompt_rows);
  counters_.decode_tokens += static_cast<uint64_t>(job->rows - prompt_rows);
  // The send began while this step ran: nobody has told of its rows yet.
  if (sequence->exporting && !job->exporting) AnnounceWritten(*sequence);
  // Rows that gave no number are shared with nobody.
  const bool sound = !job->produces || job->sampled.token >= 0;
  if (sound && (!sequence->closing || sequence->keep)) {
    pool_->Advance(sequence->kv, sequence->tokens, sequence->length);
  }
  if (sequence->closing) {
    tell(0, 0, Finish::kSkipped, 0);
    return ReleaseIfIdle(sequence);
  }
  const size_t before = report->tokens.size();
  if (job->produces) TakeToken(sequence, &job->sampled, report);
  tell(job->rows, report->tokens.size() - before, sequence->finish, sequence->length);
  if (!sequence->ended()) return;
  Leave(sequence);
  SetWillRun(sequence, false);
}

void Engine::TakeToken(Sequence* sequence, Sampled* sampled, StepReport* report) {
  const int32_t token = sampled->token;
  if (token < 0) {
    sequence->finish = Finish::kNumeric;
    return;
  }
  const bool stops = sequence->Stops(token);
  sequence->tokens.push_back(token);
  report->tokens.push_back(token);
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
}

}  // namespace margay
