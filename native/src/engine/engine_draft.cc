// The engine thread, once the target's tokens are drawn: the draft layer runs over the rows that were kept, which fills its
// KV, and proposes what the next step of the batch is to verify (engine/speculation.h).
#include <algorithm>

#include "core/trace.h"
#include "engine/engine.h"

namespace margay {

Status Engine::RunDraftLayer() {
  draft_rows_.clear();
  following_.clear();
  drafting_.clear();
  ChooseDrafting();
  for (Job& job : jobs_) {
    if (job.sequence != nullptr) AddDraftRows(&job);
  }
  if (draft_rows_.empty()) return Status::Ok();
  if (Status run = model_->Draft(draft_rows_, pool_->memory(), attention_done_, logits_.data()); !run.ok()) return run;
  while (true) {
    ProposeNext(step_rows_);
    if (drafting_.empty()) return Status::Ok();
    // The layer is fed with its own hidden states. These rows stand where the next step writes its own.
    draft_rows_.clear();
    for (Drafting& drafting : drafting_) {
      const Sequence& sequence = *drafting.job->sequence;
      DraftRows& rows = draft_rows_.emplace_back();
      rows.rows.tokens = &sequence.drafts.back();
      rows.rows.count = 1;
      rows.rows.position = sequence.length + drafting.job->kept() + static_cast<int>(sequence.drafts.size()) - 1;
      rows.rows.block_table = rows_[drafting.job->input].block_table;
      rows.rows.logits_rows = 1;
      rows.source = drafting.row;
      drafting.row = static_cast<int>(draft_rows_.size()) - 1;
    }
    if (Status run = model_->Draft(draft_rows_, pool_->memory(), nullptr, logits_.data()); !run.ok()) return run;
  }
}

// Drafts that the next step of a job's sequence can use.
int Engine::DraftsWanted(const Job& job) const {
  if (!job.batched || !job.produces || job.ends || job.masked) return 0;
  const DraftRoom room{.known = static_cast<int>(job.sequence->tokens.size()) + job.sampled,
                       .capacity = job.capacity,
                       .token_limit = job.sequence->token_limit,
                       .min_tokens = job.sequence->min_tokens};
  return DraftsThatFit(room, options_.speculation);
}

// Who drafts for the next step: those of whom most is to be expected, as many as pay.
void Engine::ChooseDrafting() {
  candidates_.clear();
  yields_.clear();
  int streams = 0;
  for (Job& job : jobs_) {
    if (job.sequence == nullptr) continue;
    streams += job.batched && job.produces && !job.ends ? 1 : 0;
    job.drafts_wanted = DraftsWanted(job);
    if (job.drafts_wanted > 0) candidates_.push_back(&job);
  }
  if (options_.draft_always) return;
  std::stable_sort(candidates_.begin(), candidates_.end(), [](const Job* a, const Job* b) { return a->sequence->draft_yield > b->sequence->draft_yield; });
  for (const Job* job : candidates_) yields_.push_back(job->sequence->draft_yield);
  const auto drafting = static_cast<size_t>(policy_.Choose(yields_, streams));
  for (size_t i = drafting; i < candidates_.size(); ++i) candidates_[i]->drafts_wanted = 0;
  candidates_.resize(std::min(drafting, candidates_.size()));
}

// Every row that was kept, with the token that follows it. Rows without a number get one too: their pages may be awaited.
void Engine::AddDraftRows(Job* job) {
  Sequence* sequence = job->sequence;
  const SequenceRows& input = rows_[job->input];
  const int known = job->rows - job->drafts;
  sequence->drafts.clear();
  DraftRows& rows = draft_rows_.emplace_back();
  rows.rows = input;
  rows.rows.tokens = following_.data() + following_.size();
  rows.rows.count = job->kept();
  rows.source = job->first_row;
  const int32_t* from = sequence->tokens.data() + sequence->length + 1;
  following_.insert(following_.end(), from, from + known - (job->produces ? 1 : 0));
  for (int i = 0; i < job->sampled; ++i) {
    following_.push_back(std::max(sampled_[job->first_sampled + static_cast<size_t>(i)].token, 0));
  }
  const int drafts = job->drafts_wanted;
  rows.rows.logits_rows = drafts > 0 ? 1 : 0;
  if (drafts > 0) drafting_.push_back({job, static_cast<int>(drafting_.size()), drafts});
}

// One more draft for everyone in drafting_, whose logits are there in its order; stays who may have another.
void Engine::ProposeNext(int step_rows) {
  const trace::Span span("propose");
  const auto vocab = static_cast<size_t>(facts_.vocab_size);
  const float least = LeastDraftProbability(step_rows);
  ForEach(drafting_.size(), drafting_.size(), [&](size_t item, size_t thread) {
    Drafting& drafting = drafting_[item];
    Job* job = drafting.job;
    Sequence* sequence = job->sequence;
    const int position = static_cast<int>(sequence->tokens.size()) + job->sampled + static_cast<int>(sequence->drafts.size());
    const Proposed proposed =
        samplers_[thread].Propose({logits_.data() + item * vocab, vocab}, sequence->sampling,
                                  HistoryOf(*job, sequence->drafts, thread), sequence->prompt_length, position);
    ++job->proposed;
    --drafting.left;
    if (proposed.token < 0 || proposed.probability < least) {
      drafting.left = 0;
    } else {
      sequence->drafts.push_back(proposed.token);
    }
  });
  std::erase_if(drafting_, [](const Drafting& drafting) { return drafting.left == 0; });
}

}  // namespace margay
