// engine_tier: what steps notice of blocks that move to the second tier and back.
#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "claim.h"
#include "engine/engine.h"

namespace margay {
namespace {

constexpr int kVocab = 64;
constexpr int kPromptBlocks = 6;
constexpr int kPrompt = kPromptBlocks * kBlockTokens;
constexpr int kPoolBlocks = 14;
constexpr int kStreamTokens = 300;
constexpr int64_t kManySteps = 8;  // one ends and one begins where steps wait for the copy

// Computes nothing, for a while, over blocks of 4 MiB.
class WideModel final : public Model {
 public:
  WideModel() {
    facts_.model_hash = "wide";
    facts_.vocab_size = kVocab;
    facts_.context_length = 1 << 14;
    facts_.attentions = 2;
    facts_.kv = {2, 8192, KvType::kF32};
  }
  const ModelFacts& facts() const override { return facts_; }
  void ForceRouting(const std::vector<int32_t>*, std::vector<int32_t>*) override {}
  Status Forward(std::span<const SequenceRows> sequences, const KvMemory&, const AttentionDone&, float* logits) override {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
    while (std::chrono::steady_clock::now() < end) {
    }
    for (const SequenceRows& rows : sequences) logits = std::fill_n(logits, rows.logits_rows * kVocab, 1.0F);
    return Status::Ok();
  }

 private:
  ModelFacts facts_;
};

class Driver {
 public:
  explicit Driver(Engine* engine) : engine_(*engine) {}

  SequenceRef Open(int32_t first, int tokens, int more) {
    SequenceSpec spec;
    for (int i = 0; i < tokens; ++i) spec.tokens.push_back(i < 2 ? (first >> (6 * i) & 63) : 3);
    spec.prompt_length = tokens;
    spec.max_new_tokens = more;
    Result<OpenedSequence> opened = engine_.OpenSequence(spec);
    if (!opened.ok()) {
      finding.Expect(false, opened.status().message());
      return {};
    }
    cached = opened->cached_tokens;
    return opened->ref;
  }

  void Plan(SequenceRef ref, int rows, int reserve) {
    const int32_t plan[] = {ref.slot, ref.generation, rows, reserve};
    const Result<int64_t> queued = engine_.Submit(plan);
    finding.Expect(queued.ok(), queued.status().message());
    if (queued.ok()) Wait([&] { return last_plan_ >= queued.value(); });
  }

  // Steps heard of so far.
  int64_t Steps() {
    for (const EngineMessage& message : engine_.TakeMessages()) {
      const auto* report = std::get_if<StepReport>(&message);
      if (report == nullptr) continue;
      ++steps_;
      last_plan_ = std::max(last_plan_, report->plan);
    }
    return steps_;
  }

  template <typename Ready>
  void Wait(Ready&& ready) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!ready() && !finding.any()) {
      Steps();
      finding.Expect(std::chrono::steady_clock::now() < end, "a plan's step does not end");
      std::this_thread::yield();
    }
  }

  Finding finding;
  int cached = 0;

 private:
  Engine& engine_;
  int64_t steps_ = 0;
  int64_t last_plan_ = -1;
};

std::string StepsGoOn() {
  EngineOptions options;
  options.slots = 2;
  options.kv_blocks = kPoolBlocks;
  options.kv_tier.bytes = uint64_t{256} << 20;
  options.model.max_rows = kPrompt + 2;
  Result<std::unique_ptr<Engine>> opened = Engine::OpenWith(std::make_unique<WideModel>(), options, [] {});
  if (!opened.ok()) return opened.status().message();
  Driver driver(opened->get());
  int64_t most = 0;
  int back = 0;
  // Prompts that evict each other, in turns: each comes back from the second tier.
  for (int round = 0; round < 30 && !driver.finding.any() && (most < kManySteps || back == 0); ++round) {
    const SequenceRef stream = driver.Open(4000 + round, 1, kStreamTokens);
    driver.Plan(stream, 1, kStreamTokens);
    const int64_t before = driver.Steps();
    const SequenceRef prompt = driver.Open(100 + round % 3, kPrompt, 2);
    most = std::max(most, driver.Steps() - before);
    back += driver.cached > 0 ? 1 : 0;
    driver.Plan(prompt, kPrompt - driver.cached, 0);
    driver.finding.Expect((*opened)->CloseSequence(prompt, true).ok() && (*opened)->CloseSequence(stream, false).ok(), "could not be closed");
    driver.finding.Same("what is broken", (*opened)->CheckInvariants().value(), std::string());
  }
  driver.finding.Expect(most >= kManySteps, "while 24 MiB were copied a batch of 50 us a step had " + std::to_string(most) + " steps");
  driver.finding.Expect(back > 0, "nothing came back from the second tier");
  return driver.finding.what();
}

}  // namespace
}  // namespace margay

int main() {
  margay::Claims claims;
  claims.Check("the batch goes on while blocks are copied to the second tier and back", margay::StepsGoOn());
  return claims.ExitCode();
}
