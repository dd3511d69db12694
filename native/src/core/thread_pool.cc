#include "core/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>

#include "core/thread_name.h"

namespace margay {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True as soon as ready() is; false when the spin time is over.
template <typename Ready>
bool SpinUntil(Ready&& ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

int ThreadPool::UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int threads) {
  const int cores = UsableCores();
  const int wanted = std::clamp(threads > 0 ? threads : cores, 1, 1024);
  may_spin_ = wanted <= cores;
  workers_.reserve(static_cast<size_t>(wanted - 1));
  for (int thread = 1; thread < wanted; ++thread) workers_.emplace_back([this, thread] { Work(thread); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  published_.fetch_add(1, std::memory_order_release);
  published_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Help(uint64_t epoch, int thread) {
  constexpr uint64_t kMask = (uint64_t{1} << kItemBits) - 1;
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (ticket >> (2 * kItemBits) == epoch) {
    const uint64_t item = ticket & kMask;
    const uint64_t items = ticket >> kItemBits & kMask;
    const Call call = call_.load(std::memory_order_relaxed);
    void* const context = context_.load(std::memory_order_relaxed);
    const int first = first_.load(std::memory_order_relaxed);
    if (item >= items) return;
    // What was read above belongs to this loop if the claim succeeds: the next loop is set up only after this item.
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    call(context, first + static_cast<int>(item), thread);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == items) done_.notify_one();
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::RunErased(int items, Call call, void* context) {
  constexpr int kMost = (1 << kItemBits) - 1;
  for (int first = 0; first < items; first += std::min(items - first, kMost)) {
    RunSome(first, std::min(items - first, kMost), call, context);
  }
}

void ThreadPool::RunSome(int first, int items, Call call, void* context) {
  if (workers_.empty() || items == 1) {
    for (int item = 0; item < items; ++item) call(context, first + item, 0);
    return;
  }
  call_.store(call, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  first_.store(first, std::memory_order_relaxed);
  const auto count = static_cast<uint32_t>(items);
  done_.store(0, std::memory_order_relaxed);
  const uint64_t before = ticket_.load(std::memory_order_relaxed) >> (2 * kItemBits);
  const uint64_t epoch = (before + 1) & ((uint64_t{1} << (64 - 2 * kItemBits)) - 1);
  ticket_.store((epoch << kItemBits | count) << kItemBits, std::memory_order_release);
  published_.fetch_add(1, std::memory_order_release);
  published_.notify_all();
  Help(epoch, 0);
  const auto finished = [&] { return done_.load(std::memory_order_acquire) == count; };
  if (finished() || (may_spin_ && SpinUntil(finished))) return;
  for (uint32_t done = done_.load(std::memory_order_acquire); done != count; done = done_.load(std::memory_order_acquire)) {
    done_.wait(done, std::memory_order_acquire);
  }
}

void ThreadPool::Work(int thread) {
  NameThread("margay-pool");
  uint32_t seen = 0;
  while (true) {
    const auto news = [&] { return published_.load(std::memory_order_acquire) != seen; };
    if (!news() && !(may_spin_ && SpinUntil(news))) published_.wait(seen, std::memory_order_acquire);
    seen = published_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    Help(ticket_.load(std::memory_order_acquire) >> (2 * kItemBits), thread);
  }
}

}  // namespace margay
