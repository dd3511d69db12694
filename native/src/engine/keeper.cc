#include "engine/keeper.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/thread_name.h"
#include "engine/engine.h"

namespace margay {

Keeper::Keeper(std::function<void(const TransferOutcome&)> take, std::function<int64_t(int64_t)> expire)
    : take_(std::move(take)), expire_(std::move(expire)), thread_([this] { Run(); }) {}

Keeper::~Keeper() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Keeper::Leave(TransferOutcome outcome) {
  {
    std::lock_guard lock(mutex_);
    outcomes_.push_back(std::move(outcome));
  }
  wake_.notify_one();
}

void Keeper::Expect(int64_t deadline_ms) {
  {
    std::lock_guard lock(mutex_);
    if (deadline_ms >= deadline_ms_) return;
    deadline_ms_ = deadline_ms;
  }
  wake_.notify_one();
}

void Keeper::Run() {
  NameThread("margay-keeper");
  // Deadlines are wall-clock times: a sleep is cut into pieces, so that a clock that was set is noticed.
  constexpr int64_t kLongestSleepMs = 1000;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const auto now_ms = static_cast<int64_t>(EpochMs());
    if (!outcomes_.empty()) {
      const std::vector<TransferOutcome> outcomes = std::exchange(outcomes_, {});
      lock.unlock();
      for (const TransferOutcome& outcome : outcomes) take_(outcome);
      lock.lock();
    } else if (deadline_ms_ <= now_ms) {
      // Deadlines told from here on are kept; `expire` looks at all that were told before.
      deadline_ms_ = kNever;
      lock.unlock();
      const int64_t next_ms = expire_(now_ms);
      lock.lock();
      if (next_ms < deadline_ms_) deadline_ms_ = next_ms;
    } else if (deadline_ms_ == kNever) {
      wake_.wait(lock);
    } else {
      wake_.wait_for(lock, std::chrono::milliseconds(std::min(deadline_ms_ - now_ms, kLongestSleepMs)));
    }
  }
}

}  // namespace margay
