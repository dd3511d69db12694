// The engine's second thread: sleeps until a deadline or an outcome of the transport, and hands it over.
//
// Owns its thread and the outcomes not yet handed over: running -> joined by the destructor.
// K1 Leave never blocks and takes no other lock: safe from any transport thread, also inside a call of the transport
// K2 a deadline told by Expect before the thread sleeps, or while it does, is not slept through
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

#include "transport/kv_transfer.h"

namespace margay {

class Keeper {
 public:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  // `take` handles one outcome; `expire(now)` ends what is past its deadline and returns the next one (epoch ms).
  Keeper(std::function<void(const TransferOutcome&)> take, std::function<int64_t(int64_t)> expire);
  ~Keeper();
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;

  void Leave(TransferOutcome outcome);
  void Expect(int64_t deadline_ms);

 private:
  void Run();

  std::function<void(const TransferOutcome&)> take_;
  std::function<int64_t(int64_t)> expire_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<TransferOutcome> outcomes_;
  int64_t deadline_ms_ = kNever;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace margay
