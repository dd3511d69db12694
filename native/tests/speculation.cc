// speculation: what drafts may change of a text, on a model so small that its distribution is known.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "claim.h"
#include "engine/engine.h"

namespace margay {
namespace {

constexpr int kVocab = 4;
constexpr int kLength = 3;  // tokens of a text
constexpr int kTexts = 20000;
constexpr int kSlots = 4;  // few, so that unlikely drafts are verified too

// What the target and the draft layer make of the token before: rows of logits.
constexpr float kTarget[kVocab][kVocab] = {{1.2F, 0.3F, -0.4F, 0}, {0, 1.5F, 0.1F, -1}, {-0.5F, 0, 0.9F, 0.6F}, {0.2F, 0.2F, 0.4F, -0.3F}};
constexpr float kDraft[kVocab][kVocab] = {{0.7F, 0.6F, 0, 0.4F}, {0.3F, 0.2F, 1, -0.5F}, {0, 0.3F, 0.5F, 1.1F}, {1, -0.2F, 0.1F, 0.3F}};

double Probability(int32_t before, int32_t token, double temperature) {
  double sum = 0;
  for (const float logit : kTarget[before]) sum += std::exp(double{logit} / temperature);
  return std::exp(double{kTarget[before][token]} / temperature) / sum;
}

class TableModel final : public Model {
 public:
  TableModel() {
    facts_.model_hash = "table";
    facts_.vocab_size = kVocab;
    facts_.context_length = 64;
    facts_.attentions = 3;
    facts_.drafts = true;
    facts_.kv = {3, 2, KvType::kF32};
  }
  const ModelFacts& facts() const override { return facts_; }
  void ForceRouting(const std::vector<int32_t>*, std::vector<int32_t>*) override {}
  Status Forward(std::span<const SequenceRows> sequences, const KvMemory&, const AttentionDone&, float* logits) override {
    for (const SequenceRows& rows : sequences) logits = Say(kTarget, rows, logits);
    return Status::Ok();
  }
  Status Draft(std::span<const DraftRows> sequences, const KvMemory&, const AttentionDone&, float* logits) override {
    for (const DraftRows& draft : sequences) logits = Say(kDraft, draft.rows, logits);
    return Status::Ok();
  }

 private:
  static float* Say(const float (*table)[kVocab], const SequenceRows& rows, float* logits) {
    for (int i = rows.count - rows.logits_rows; i < rows.count; ++i) logits = std::copy_n(table[rows.tokens[i]], kVocab, logits);
    return logits;
  }
  ModelFacts facts_;
};

using Text = std::array<int32_t, kLength>;

struct Drawn {
  std::vector<Text> texts;  // by seed
  EngineStats stats;
};

// Texts of seeds 0, 1, 2, ...
Drawn Draw(int drafts, float temperature, Finding* found) {
  Drawn drawn;
  EngineOptions options;
  options.slots = kSlots;
  options.kv_blocks = kSlots;
  options.model.max_rows = 4 * kSlots;
  options.speculation = drafts;
  options.draft_always = true;
  Result<std::unique_ptr<Engine>> opened = Engine::OpenWith(std::make_unique<TableModel>(), options, [] {});
  if (!opened.ok()) {
    found->Expect(false, opened.status().message());
    return drawn;
  }
  Engine& engine = **opened;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (static_cast<int>(drawn.texts.size()) < kTexts && !found->any()) {
    std::vector<int32_t> plan;
    std::map<int32_t, std::vector<int32_t>> made;
    std::map<int32_t, size_t> seeds;
    for (int i = 0; i < kSlots; ++i) {
      SequenceSpec spec;
      spec.tokens = {0};
      spec.prompt_length = 1;
      spec.max_new_tokens = kLength;
      spec.reserve = 1 + kLength;
      spec.sampling.temperature = temperature;
      spec.sampling.seed = drawn.texts.size() + static_cast<size_t>(i);
      const Result<OpenedSequence> sequence = engine.OpenSequence(spec);
      if (!sequence.ok()) {
        found->Expect(false, sequence.status().message());
        return drawn;
      }
      const SequenceRef ref = sequence.value().ref;
      seeds[ref.slot] = spec.sampling.seed;
      plan.insert(plan.end(), {ref.slot, ref.generation, 1, 1 + kLength});
    }
    drawn.texts.resize(drawn.texts.size() + kSlots);
    found->Expect(engine.Submit(plan).ok(), "a plan was refused");
    size_t ended = 0;
    while (ended < kSlots && !found->any()) {
      for (const EngineMessage& message : engine.TakeMessages()) {
        const auto* report = std::get_if<StepReport>(&message);
        if (report == nullptr) continue;
        const int32_t* token = report->tokens.data();
        for (size_t at = 0; at < report->entries.size(); at += kStepEntryWidth) {
          const int32_t* entry = &report->entries[at];
          std::vector<int32_t>& text = made[entry[0]];
          text.insert(text.end(), token, token + entry[3]);
          token += entry[3];
          if (entry[4] == static_cast<int32_t>(Finish::kNone)) continue;
          ++ended;
          found->Same("the length of a text", text.size(), size_t{kLength});
          if (text.size() == kLength) std::copy_n(text.begin(), kLength, drawn.texts[seeds[entry[0]]].begin());
          found->Expect(engine.CloseSequence({entry[0], entry[1]}, false).ok(), "it could not be closed");
        }
      }
      found->Expect(std::chrono::steady_clock::now() < end, "the texts do not end");
      std::this_thread::yield();
    }
  }
  if (const Result<EngineStats> stats = engine.Stats(); stats.ok()) drawn.stats = stats.value();
  return drawn;
}

// Frequencies of whole texts against the product of the target's probabilities: chi-square with 63 degrees of freedom.
std::string Distribution(float temperature) {
  Finding found;
  const Drawn drawn = Draw(2, temperature, &found);
  std::map<Text, int> counts;
  for (const Text& text : drawn.texts) ++counts[text];
  double chi_square = 0;
  for (int code = 0; code < kVocab * kVocab * kVocab; ++code) {
    const Text text = {code / 16, code / 4 % 4, code % 4};
    double expected = kTexts;
    for (int i = 0; i < kLength; ++i) expected *= Probability(i == 0 ? 0 : text[static_cast<size_t>(i) - 1], text[static_cast<size_t>(i)], double{temperature});
    chi_square += (counts[text] - expected) * (counts[text] - expected) / expected;
  }
  // 0.1 % of right ones are above 103.4.
  found.Expect(chi_square < 103.4, "chi-square is " + std::to_string(chi_square));
  const auto accepted = static_cast<double>(drawn.stats.drafts_accepted);
  const auto verified = static_cast<double>(drawn.stats.drafts_verified);
  found.Expect(accepted > 0.4 * verified && accepted < 0.95 * verified, std::to_string(accepted) + " of " + std::to_string(verified) + " drafts were accepted");
  return found.what();
}

std::string SameTexts() {
  Finding found;
  const Drawn plain = Draw(0, 1, &found);
  for (const int drafts : {1, 2, 3}) {
    const Drawn drawn = Draw(drafts, 1, &found);
    found.Expect(drawn.texts == plain.texts, "texts differ with " + std::to_string(drafts) + " drafts");
    found.Expect(drawn.stats.steps < plain.stats.steps, std::to_string(drafts) + " drafts save no step");
  }
  return found.what();
}

std::string Room() {
  Finding found;
  const DraftRoom wide{.known = 10, .capacity = 100, .token_limit = 100};
  found.Same("drafts with room", DraftsThatFit(wide, 3), 3);
  found.Same("drafts before the last token", DraftsThatFit({.known = 99, .capacity = 100, .token_limit = 100}, 3), 0);
  found.Same("drafts before the last two", DraftsThatFit({.known = 98, .capacity = 100, .token_limit = 100}, 3), 1);
  found.Same("drafts with one block left", DraftsThatFit({.known = 63, .capacity = 64, .token_limit = 100}, 3), 1);
  found.Same("drafts without a block", DraftsThatFit({.known = 64, .capacity = 64, .token_limit = 100}, 3), 0);
  found.Same("drafts two before it may stop", DraftsThatFit({.known = 10, .capacity = 100, .token_limit = 100, .min_tokens = 12}, 3), 1);
  found.Same("drafts once it may stop", DraftsThatFit({.known = 12, .capacity = 100, .token_limit = 100, .min_tokens = 12}, 3), 3);
  float before = 0;
  for (const int rows : {1, 2, 16, 64, 256}) {
    const float least = LeastDraftProbability(rows);
    found.Expect(least > before && least < 1, "the least probability does not rise with the load");
    before = least;
  }
  return found.what();
}

}  // namespace
}  // namespace margay

int main() {
  margay::Claims claims;
  claims.Check("texts drawn with drafts have the target's distribution, at temperature 1", margay::Distribution(1));
  claims.Check("texts drawn with drafts have the target's distribution, at temperature 0.6", margay::Distribution(0.6F));
  claims.Check("a seed gives the same text with any number of drafts", margay::SameTexts());
  claims.Check("drafts fit what is left of limit, blocks and the least length; load thins them", margay::Room());
  return claims.ExitCode();
}
