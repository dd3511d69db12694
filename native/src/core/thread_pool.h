// Runs loops over independent items on a fixed set of threads, the caller's included.
//
// Owns its worker threads: started -> (spinning <-> parked)* -> joined by the destructor.
// T1 an item runs exactly once; Run returns after all items have ended
// T2 Run waits for claimed items only: a worker that wakes late claims nothing and delays nobody
// T3 idle threads spin at most 50 us, then sleep; they never spin when there are more threads than usable cores
// T4 one caller at a time
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace margay {

class ThreadPool {
 public:
  // threads: those that compute, the caller included; 0: one per usable core.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // body(item, thread) for item in [0, items); thread < threads() is the running thread's own number.
  template <typename Body>
  void Run(int items, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    RunErased(items, [](void* context, int item, int thread) { (*static_cast<Plain*>(context))(item, thread); },
              const_cast<void*>(static_cast<const void*>(&body)));
  }

  static int UsableCores();

 private:
  using Call = void (*)(void* context, int item, int thread);

  void RunErased(int items, Call call, void* context);
  void RunSome(int first, int items, Call call, void* context);
  // Claims and runs items of the loop `epoch` until none is left.
  void Help(uint64_t epoch, int thread);
  void Work(int thread);

  // Number of the loop, its items, next unclaimed item: one word, so that a claim succeeds only within its own loop.
  static constexpr int kItemBits = 20;
  std::atomic<uint64_t> ticket_{0};
  std::atomic<Call> call_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> first_{0};
  alignas(64) std::atomic<uint32_t> done_{0};
  alignas(64) std::atomic<uint32_t> published_{0};  // workers sleep on it
  std::atomic<bool> stopping_{false};
  bool may_spin_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace margay
