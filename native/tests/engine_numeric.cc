// engine_numeric: what the engine keeps of rows that gave no number.
#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <thread>
#include <variant>
#include <vector>

#include "claim.h"
#include "engine/engine.h"

namespace margay {
namespace {

constexpr int kVocab = 8;
constexpr int32_t kPoison = 7;

// Its logits are no numbers where a token of the step is kPoison.
class PoisonedModel final : public Model {
 public:
  PoisonedModel() {
    facts_.model_hash = "poisoned";
    facts_.vocab_size = kVocab;
    facts_.context_length = 512;
    facts_.attentions = 2;
    facts_.kv = {2, 2, KvType::kF32};
  }
  const ModelFacts& facts() const override { return facts_; }
  void ForceRouting(const std::vector<int32_t>*, std::vector<int32_t>*) override {}
  Status Forward(std::span<const SequenceRows> sequences, const KvMemory&, const AttentionDone&, float* logits) override {
    for (const SequenceRows& rows : sequences) {
      const bool poisoned = std::count(rows.tokens, rows.tokens + rows.count, kPoison) > 0;
      if (rows.logits_rows > 0) std::fill_n(logits, kVocab, poisoned ? std::numeric_limits<float>::quiet_NaN() : 1.0F);
      logits += rows.logits_rows * kVocab;
    }
    return Status::Ok();
  }

 private:
  ModelFacts facts_;
};

// The finish code of the next step, or -1 when none came in time.
int32_t NextFinish(Engine& engine) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::chrono::steady_clock::now() < end) {
    for (const EngineMessage& message : engine.TakeMessages()) {
      if (const auto* report = std::get_if<StepReport>(&message)) return report->entries[4];
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return -1;
}

std::string Shared(int32_t token, Finish finish, size_t blocks) {
  Finding found;
  EngineOptions options;
  options.slots = 2;
  options.kv_blocks = 8;
  options.model.max_rows = 256;
  Result<std::unique_ptr<Engine>> opened = Engine::OpenWith(std::make_unique<PoisonedModel>(), options, [] {});
  if (!opened.ok()) return opened.status().message();
  Engine& engine = **opened;
  SequenceSpec spec;
  spec.tokens.assign(130, 3);
  spec.tokens[5] = token;
  spec.prompt_length = 130;
  spec.max_new_tokens = 4;
  const Result<OpenedSequence> sequence = engine.OpenSequence(spec);
  if (!sequence.ok()) return sequence.status().message();
  const SequenceRef ref = sequence.value().ref;
  const int32_t plan[] = {ref.slot, ref.generation, 130, 0};
  if (const Result<int64_t> queued = engine.Submit(plan); !queued.ok()) return queued.status().message();
  found.Same("the finish code", NextFinish(engine), static_cast<int32_t>(finish));
  found.Same("bytes of shared blocks", engine.PrefixHashes().value().size(), blocks * 16);
  found.Expect(engine.CloseSequence(ref, true).ok(), "it could not be closed");
  found.Same("bytes of cached blocks", engine.PrefixHashes().value().size(), blocks * 16);
  found.Same("what is broken", engine.CheckInvariants().value(), std::string());
  return found.what();
}

}  // namespace
}  // namespace margay

int main() {
  margay::Claims claims;
  claims.Check("sound rows are shared at once and kept", margay::Shared(3, margay::Finish::kNone, 2));
  claims.Check("rows that gave no number are shared with nobody", margay::Shared(margay::kPoison, margay::Finish::kNumeric, 0));
  return claims.ExitCode();
}
