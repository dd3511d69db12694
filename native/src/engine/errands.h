// A thread for what an engine does once in a while and must not hold up its steps: joining a group, touching weights.
//
// Owns its thread and the errands not yet run: running -> joined by the destructor, which drops those that have not begun.
// Errands run one after the other, in the order in which they were left.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "core/thread_name.h"

namespace margay {

class Errands {
 public:
  Errands() : thread_([this] { Run(); }) {}
  ~Errands() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  Errands(const Errands&) = delete;
  Errands& operator=(const Errands&) = delete;

  void Leave(std::function<void()> errand) {
    {
      const std::lock_guard lock(mutex_);
      errands_.push_back(std::move(errand));
    }
    wake_.notify_one();
  }

 private:
  void Run() {
    NameThread("margay-errands");
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return stopping_ || !errands_.empty(); });
      if (stopping_) return;
      const std::function<void()> errand = std::move(errands_.front());
      errands_.pop_front();
      lock.unlock();
      errand();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> errands_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace margay
