// engine_overhead: what the engine itself takes of a step, over a model that computes next to nothing.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <variant>
#include <vector>

#include "claim.h"
#include "engine/engine.h"

namespace margay {
namespace {

constexpr int kBatch = 16;
constexpr int kPrompt = 10;
constexpr int kSteps = 5000;
constexpr int kVocab = 64;

class IdleModel final : public Model {
 public:
  IdleModel() {
    facts_.model_hash = "idle";
    facts_.vocab_size = kVocab;
    facts_.context_length = 1 << 16;
    facts_.attentions = 2;
    facts_.kv = {2, 2, KvType::kF32};
  }
  const ModelFacts& facts() const override { return facts_; }
  void ForceRouting(const std::vector<int32_t>*, std::vector<int32_t>*) override {}
  Status Draft(std::span<const DraftRows>, const KvMemory&, const AttentionDone&, float*) override { return Status::Ok(); }
  Status Forward(std::span<const SequenceRows> sequences, const KvMemory&, const AttentionDone&, float* logits) override {
    for (const SequenceRows& rows : sequences) {
      std::fill_n(logits, rows.logits_rows * kVocab, 1.0F);
      logits += rows.logits_rows * kVocab;
    }
    return Status::Ok();
  }

 private:
  ModelFacts facts_;
};

// An engine of which kBatch sequences decode `steps` steps, then wait for room.
Result<std::unique_ptr<Engine>> Decode(int steps, std::function<void()> notify) {
  EngineOptions options;
  options.slots = kBatch;
  options.kv_blocks = kBatch * (kSteps / kBlockTokens + 2);
  options.model.max_rows = 256;
  Result<std::unique_ptr<Engine>> opened = Engine::OpenWith(std::make_unique<IdleModel>(), options, std::move(notify));
  if (!opened.ok()) return opened;
  Engine& engine = **opened;
  std::vector<int32_t> plan;
  for (int i = 0; i < kBatch; ++i) {
    SequenceSpec spec;
    spec.tokens.assign(kPrompt, 3 + i);
    spec.prompt_length = kPrompt;
    spec.max_new_tokens = kSteps;
    const Result<OpenedSequence> sequence = engine.OpenSequence(spec);
    if (!sequence.ok()) return sequence.status();
    const SequenceRef ref = sequence.value().ref;
    plan.insert(plan.end(), {ref.slot, ref.generation, kPrompt, kPrompt + steps - 1});
  }
  if (const Result<int64_t> queued = engine.Submit(plan); !queued.ok()) return queued.status();
  return opened;
}

// Microseconds of each step of a full batch.
std::string Measure(std::vector<double>* step_us) {
  Result<std::unique_ptr<Engine>> opened = Decode(kSteps, [] {});
  if (!opened.ok()) return opened.status().message();
  Engine& engine = **opened;
  const double end_ms = EpochMs() + 20'000;
  while (step_us->size() < kSteps) {
    if (EpochMs() > end_ms) return "the batch is not repeated to its end";
    for (const EngineMessage& message : engine.TakeMessages()) {
      if (const auto* report = std::get_if<StepReport>(&message)) step_us->push_back(report->compute_ms * 1000);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return "";
}

std::string TakesLittle() {
  std::vector<double> step_us;
  if (std::string failed = Measure(&step_us); !failed.empty()) return failed;
  std::nth_element(step_us.begin(), step_us.begin() + kSteps / 2, step_us.end());
  const double median = step_us[kSteps / 2];
  std::fprintf(stderr, "the engine takes %.1f us of a step of %d\n", median, kBatch);
  constexpr double kPromisedUs = 40;
  Finding found;
  found.Expect(median < 3 * kPromisedUs, std::to_string(median) + " us a step");
  return found.what();
}

// Listens as the addon does: looks when the bell rang, never otherwise.
std::string TellsInTime() {
  constexpr int kFew = 400;
  std::mutex mutex;
  std::condition_variable bell;
  int rings = 0, heard = 0;
  Result<std::unique_ptr<Engine>> opened = Decode(kFew, [&] {
    std::lock_guard lock(mutex);
    ++rings;
    bell.notify_one();
  });
  if (!opened.ok()) return opened.status().message();
  int steps = 0;
  std::unique_lock lock(mutex);
  while (steps < kFew) {
    if (!bell.wait_for(lock, std::chrono::seconds(15), [&] { return rings > heard; })) {
      return "steps were told up to " + std::to_string(steps) + " of " + std::to_string(kFew) + ", the rest never";
    }
    heard = rings;
    lock.unlock();
    for (const EngineMessage& message : (*opened)->TakeMessages()) {
      if (const auto* report = std::get_if<StepReport>(&message); report != nullptr && report->step != steps++) return "a step is missing";
    }
    lock.lock();
  }
  Finding found;
  found.Expect(rings <= kFew / 4, std::to_string(rings) + " rings for " + std::to_string(kFew) + " steps of some microseconds");
  return found.what();
}

}  // namespace
}  // namespace margay

int main() {
  margay::Claims claims;
  claims.Check("the engine itself takes less than it promised of a step of 16", margay::TakesLittle());
  claims.Check("short steps of an unchanged batch are told several at once, also the last ones before it rests", margay::TellsInTime());
  return claims.ExitCode();
}
