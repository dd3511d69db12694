// What the engine has to tell its owner: results and events, in the order in which they happened.
//
// Owns the messages not yet taken. Any thread puts; one thread takes, after `notify` told it that there is something.
//
//   empty -> holding (what may wait) -> rung -> empty (taken)
//
// O1 `notify` is called once per filling, never again before it was taken
// O2 what may wait is told with the next message that may not, or by Ring, which the engine thread calls in time
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "core/status.h"
#include "engine/sequence.h"
#include "kv/kv_pool.h"
#include "transport/kv_transfer.h"

namespace margay {

struct StepLogprobs {
  int32_t slot = 0;
  float chosen = 0;
  std::vector<int32_t> ids;
  std::vector<float> values;
};

inline constexpr int kStepEntryWidth = 6;  // STEP_ENTRY_WIDTH

struct StepReport {
  int64_t step = 0;
  int64_t plan = -1;              // -1: the batch was repeated
  std::vector<int32_t> entries;   // kStepEntryWidth values each, see StepResult in native.ts
  std::vector<int32_t> tokens;    // of all entries, in order
  std::vector<StepLogprobs> logprobs;
  double start_ms = 0;  // epoch
  double compute_ms = 0;
  bool awaited = false;  // somebody can only go on once it is told
};

// A prompt's first token, told before the draft layer's pass. Its step's report has it again.
struct FirstToken {
  SequenceRef sequence;
  int32_t token = 0;
  Finish finish = Finish::kNone;
  double compute_ms = 0;  // of the step so far
  std::optional<StepLogprobs> logprobs;
};

struct TransferEvent {
  bool sent = false;  // else received
  TransferOutcome outcome;
};
struct LapsedEvent {
  SequenceRef sequence;
};
struct GroupLostEvent {
  int64_t epoch = 0;
  int guilty = -1;  // member; -1: nobody in particular
  std::string cause;
};
// A call that took its time has ended.
struct CallEnded {
  int64_t call = 0;
  Status status;
};
struct FatalReport {
  std::string message;
};

using EngineMessage =
    std::variant<StepReport, FirstToken, TransferEvent, LapsedEvent, KvChanges, GroupLostEvent, CallEnded, FatalReport>;

class Outbox {
 public:
  explicit Outbox(std::function<void()> notify) : notify_(std::move(notify)) {}

  void Put(EngineMessage message) {
    Hold(std::move(message));
    Ring();
  }

  // Puts what may wait.
  void Hold(EngineMessage message) {
    std::lock_guard lock(mutex_);
    if (std::holds_alternative<StepReport>(message)) ++steps_;
    messages_.push_back(std::move(message));
  }

  void Ring() {
    {
      std::lock_guard lock(mutex_);
      if (rung_ || messages_.empty()) return;
      rung_ = true;
    }
    notify_();
  }

  std::vector<EngineMessage> Take() {
    std::lock_guard lock(mutex_);
    steps_ = 0;
    rung_ = false;
    return std::exchange(messages_, {});
  }

  // Steps told and not yet taken.
  int steps() const {
    std::lock_guard lock(mutex_);
    return steps_;
  }

 private:
  std::function<void()> notify_;
  mutable std::mutex mutex_;
  std::vector<EngineMessage> messages_;
  int steps_ = 0;
  bool rung_ = false;
};

}  // namespace margay
