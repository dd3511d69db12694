// Runs loops over independent items on a fixed set of threads, the caller's included.
//
// Owns its worker threads: started -> (spinning <-> asleep)* -> joined by the destructor.
// T1 an item runs exactly once; Run returns after all items have ended
// T2 Run waits for claimed items only: a worker that wakes late claims nothing and delays nobody
// T3 a worker without a loop spins at most 50 us, within Awake at most 2 ms, then sleeps; it lets others run after 10 us,
//    and never spins when there are more threads than usable cores
// T4 one caller at a time
// T5 a pinned pool gives each thread a core of its own among those that its maker may use, or with fewer cores than
//    threads none; it knows nothing of other processes, which must have been given other cores
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace margay {

class ThreadPool {
 public:
  // threads: those that compute, the caller included; 0: one per usable core. pinned: each worker stays on one core.
  explicit ThreadPool(int threads, bool pinned = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // body(item, thread) for item in [0, items); thread < threads() is the running thread's own number. Each thread begins
  // with its own share, in order, and then takes from the others' ends.
  template <typename Body>
  void Run(int items, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    RunErased(items, [](void* context, int item, int thread) { (*static_cast<Plain*>(context))(item, thread); },
              const_cast<void*>(static_cast<const void*>(&body)));
  }

  // While one lives, workers that were woken by a loop stay awake for the next: a step of many loops wakes them once.
  class Awake {
   public:
    explicit Awake(ThreadPool* pool) : pool_(pool) { pool_->stay_awake_.fetch_add(1, std::memory_order_relaxed); }
    ~Awake() { pool_->stay_awake_.fetch_sub(1, std::memory_order_relaxed); }
    Awake(const Awake&) = delete;
    Awake& operator=(const Awake&) = delete;

   private:
    ThreadPool* const pool_;
  };

  // The calling thread stays on the core that a pinned pool keeps for its caller. Threads that it starts inherit that.
  void PinCaller() const { PinTo(0); }

  static int UsableCores();

 private:
  using Call = void (*)(void* context, int item, int thread);

  // Number of the loop, first and last + 1 of the unclaimed items of one thread's share: one word, so that a claim
  // succeeds only within its own loop.
  struct alignas(64) Share {
    std::atomic<uint64_t> word{0};
  };
  static constexpr int kItemBits = 20;
  static constexpr uint64_t kItemMask = (uint64_t{1} << kItemBits) - 1;

  void RunErased(int items, Call call, void* context);
  void RunSome(int first, int items, Call call, void* context);
  // Claims and runs items of the loop `published` until none is left.
  void Help(uint32_t published, int thread, int threads);
  // Claims and runs items of one share; returns how many.
  uint32_t Take(Share* share, bool from_front, uint64_t epoch, int thread);
  // The part of a loop's number that its shares carry.
  static uint64_t Epoch(uint32_t published) { return published & ((uint64_t{1} << (64 - 2 * kItemBits)) - 1); }
  void Work(int thread, int threads);
  // Best effort: a core that was taken from the process since is not insisted on.
  void PinTo(int thread) const;

  std::unique_ptr<Share[]> shares_;  // [threads]
  // The loop in one cache line, which idle workers watch; they sleep on its number.
  alignas(64) std::atomic<uint32_t> published_{0};
  std::atomic<uint32_t> items_{0};
  std::atomic<int> first_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<Call> call_{nullptr};
  std::atomic<void*> context_{nullptr};
  alignas(64) std::atomic<uint32_t> done_{0};
  alignas(64) std::atomic<int> stay_awake_{0};
  bool may_spin_ = false;
  std::vector<int> cores_;  // by thread; empty: not pinned
  std::vector<std::thread> workers_;
};

}  // namespace margay
