// A group of models, each on a thread of its own, over sequences that are dealt out to them.
#pragma once

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/exchange.h"
#include "golden_file.h"
#include "model/model.h"

namespace margay::tests {

inline std::unique_ptr<Model> LoadRank(const std::string& folder, const std::string& path, bool deterministic, bool draft = false,
                                       float latent_eps = -1) {
  ModelOptions options;
  options.folder = folder;
  options.backend = path == "ref" ? BackendKind::kRef : BackendKind::kCpu;
  options.isa = path == "ref" ? "" : path;
  options.threads = 1;
  options.deterministic = deterministic;
  options.draft = draft;
  options.latent_norm_eps = latent_eps;
  return OrDie(Model::Load(options));
}

inline std::vector<int32_t> TokensOf(uint32_t seed, int count, int vocab) {
  std::vector<int32_t> tokens;
  for (uint32_t random = seed * 7919 + 1; count > 0; --count) {
    random = random * 1664525 + 1013904223;
    tokens.push_back(static_cast<int32_t>(random >> 8) % vocab);
  }
  return tokens;
}

// Experts of a group, in turn, but for the first rank: it has a third of what would be its part, and at least one.
inline ExpertOwners UnevenOwners(int experts, int ranks) {
  ExpertOwners owners;
  const int few = std::max(1, experts / ranks / 3);
  for (int expert = 0; expert < experts; ++expert) {
    owners.push_back({expert < few || ranks == 1 ? 0 : 1 + (expert - few) % (ranks - 1)});
  }
  return owners;
}

struct Together {
  std::vector<int> chunks = {0};   // of rank i: chunks[i % size] rows of each of its sequences a step; 0: all that are left
  ExpertOwners owners = {};        // of a group; one model is alone
  std::optional<PayloadFormat> payload = {};  // of a group; else what its models want
  bool draft = false;              // logits of the draft layer instead: those at the end of each chunk but the last
};

// The sequences of one rank, each as far as it was computed.
class RankRun {
 public:
  RankRun(const RankRun&) = delete;
  RankRun(RankRun&&) = default;
  RankRun(Model* model, std::vector<const std::vector<int32_t>*> sequences, int chunk, bool draft)
      : model_(model), sequences_(std::move(sequences)), chunk_(chunk), draft_(draft) {
    const ModelFacts& facts = model->facts();
    int32_t blocks = 1;
    for (const auto* tokens : sequences_) {
      std::vector<int32_t>& table = tables_.emplace_back((tokens->size() + kBlockTokens - 1) / kBlockTokens);
      for (auto block = table.rbegin(); block != table.rend(); ++block) *block = blocks++;
      logits_.emplace_back(tokens->size() * Vocab());
    }
    at_.resize(sequences_.size());
    pool_.resize(facts.kv.block_bytes() * static_cast<size_t>(blocks), std::byte{0xff});
    kv_ = {pool_.data(), facts.kv, static_cast<int>(blocks)};
  }

  // All sequences together; without rows when all are done.
  Status Step() {
    std::vector<SequenceRows> rows;
    std::vector<DraftRows> drafts;
    std::vector<size_t> members;
    int total = 0;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const std::vector<int32_t>& tokens = *sequences_[s];
      const int left = static_cast<int>(tokens.size()) - at_[s];
      const int count = std::min({left, chunk_ == 0 ? left : chunk_, model_->facts().max_rows - total});
      if (count <= 0) continue;
      rows.push_back({&tokens[static_cast<size_t>(at_[s])], count, at_[s], tables_[s].data(), draft_ ? 0 : count});
      if (draft_ && left > count) {
        drafts.push_back({{&tokens[static_cast<size_t>(at_[s]) + 1], count, at_[s], tables_[s].data(), count}, total});
      }
      members.push_back(s);
      total += count;
    }
    std::vector<float> made(static_cast<size_t>(total) * Vocab());
    if (Status run = model_->Forward(rows, kv_, nullptr, made.data()); !run.ok()) return run;
    if (!drafts.empty()) {
      if (Status run = model_->Draft(drafts, kv_, nullptr, made.data()); !run.ok()) return run;
    }
    const float* from = made.data();
    for (size_t m = 0; m < members.size(); ++m) {
      const size_t s = members[m];
      const bool told = !draft_ || static_cast<int>(sequences_[s]->size()) > at_[s] + rows[m].count;
      const size_t size = static_cast<size_t>(told ? rows[m].count : 0) * Vocab();
      std::memcpy(&logits_[s][static_cast<size_t>(at_[s]) * Vocab()], from, size * sizeof(float));
      from += size;
      at_[s] += rows[m].count;
    }
    return Status::Ok();
  }

  bool done() const {
    for (size_t s = 0; s < sequences_.size(); ++s) {
      if (at_[s] < static_cast<int>(sequences_[s]->size())) return false;
    }
    return true;
  }
  const std::vector<std::vector<float>>& logits() const { return logits_; }

 private:
  size_t Vocab() const { return static_cast<size_t>(model_->facts().vocab_size); }

  Model* const model_;
  std::vector<const std::vector<int32_t>*> sequences_;
  const int chunk_;
  const bool draft_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<std::vector<float>> logits_;  // per sequence [tokens, vocab]
  std::vector<int> at_;
  std::vector<std::byte> pool_;
  KvMemory kv_;
};

inline GroupSpec SpecOf(const Model& model, ExpertOwners owners) {
  const ModelFacts& facts = model.facts();
  GroupSpec spec;
  spec.epoch = 1;
  spec.owners = std::move(owners);
  spec.hidden = facts.hidden;
  spec.topk = facts.topk;
  spec.max_rows = facts.max_rows;
  spec.payload = facts.payload;
  spec.combine = facts.combine;
  spec.deadline_ms = 60'000;
  return spec;
}

// Logits of all positions of each sequence, [sequences][tokens, vocab]. Sequence i is rank i % ranks's; ranks step until all
// are done, without rows when they have none left.
inline std::vector<std::vector<float>> RunTogether(const std::vector<std::unique_ptr<Model>>& models,
                                                   const std::vector<std::vector<int32_t>>& sequences, const Together& how) {
  const size_t ranks = models.size();
  std::vector<std::unique_ptr<ExpertExchange>> exchanges;
  if (ranks > 1) {
    GroupSpec spec = SpecOf(*models[0], how.owners);
    spec.payload = how.payload.value_or(spec.payload);
    exchanges = OrDie(JoinInProcess(spec, static_cast<int>(ranks)));
  }
  std::vector<RankRun> runs;
  runs.reserve(ranks);
  for (size_t rank = 0; rank < ranks; ++rank) {
    std::vector<const std::vector<int32_t>*> own;
    for (size_t s = rank; s < sequences.size(); s += ranks) own.push_back(&sequences[s]);
    runs.emplace_back(models[rank].get(), own, how.chunks[rank % how.chunks.size()], how.draft);
    OrDie(models[rank]->SetExchange(ranks > 1 ? exchanges[rank].get() : nullptr));
  }
  const auto all_done = [&] { return std::all_of(runs.begin(), runs.end(), [](const RankRun& run) { return run.done(); }); };
  while (!all_done()) {
    std::vector<std::thread> threads;
    for (size_t rank = 1; rank < ranks; ++rank) threads.emplace_back([&, rank] { OrDie(runs[rank].Step()); });
    OrDie(runs[0].Step());
    for (std::thread& thread : threads) thread.join();
  }
  std::vector<std::vector<float>> logits;
  for (size_t s = 0; s < sequences.size(); ++s) logits.push_back(runs[s % ranks].logits()[s / ranks]);
  for (const auto& model : models) OrDie(model->SetExchange(nullptr));
  return logits;
}

}  // namespace margay::tests
