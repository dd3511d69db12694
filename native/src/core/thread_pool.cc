#include "core/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>

#include "core/thread_name.h"

namespace margay {
namespace {

using std::chrono::microseconds;

constexpr auto kSpin = microseconds(50);
constexpr auto kSpinAwake = microseconds(2000);
constexpr auto kSpinAlone = microseconds(10);  // then whoever waits for the core may have it

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True as soon as ready() is; false when longest() is over.
template <typename Ready, typename Longest>
bool SpinUntil(Ready&& ready, Longest&& longest) {
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      Pause();
    }
    const auto spun = std::chrono::steady_clock::now() - start;
    if (spun > longest()) return false;
    if (spun > kSpinAlone) sched_yield();
  }
}

// Numbers of the cores that the calling thread may use; none where the system does not tell.
std::vector<int> CoresOfThread() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

}  // namespace

int ThreadPool::UsableCores() {
  const auto cores = static_cast<int>(CoresOfThread().size());
  return cores > 0 ? cores : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void ThreadPool::PinTo(int thread) const {
  if (cores_.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cores_[static_cast<size_t>(thread)], &set);
  (void)sched_setaffinity(0, sizeof(set), &set);
}

ThreadPool::ThreadPool(int threads, bool pinned) {
  const int cores = UsableCores();
  const int wanted = std::clamp(threads > 0 ? threads : cores, 1, 1024);
  may_spin_ = wanted <= cores;
  if (pinned) cores_ = CoresOfThread();
  if (static_cast<size_t>(wanted) > cores_.size()) cores_.clear();
  shares_ = std::make_unique<Share[]>(static_cast<size_t>(wanted));
  workers_.reserve(static_cast<size_t>(wanted - 1));
  for (int thread = 1; thread < wanted; ++thread) workers_.emplace_back([this, thread, wanted] { Work(thread, wanted); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  published_.fetch_add(1, std::memory_order_release);
  published_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

uint32_t ThreadPool::Take(Share* share, bool from_front, uint64_t epoch, int thread) {
  uint32_t taken = 0;
  uint64_t word = share->word.load(std::memory_order_acquire);
  while (word >> (2 * kItemBits) == epoch) {
    const uint64_t next = word >> kItemBits & kItemMask;
    const uint64_t end = word & kItemMask;
    const Call call = call_.load(std::memory_order_relaxed);
    void* const context = context_.load(std::memory_order_relaxed);
    const int first = first_.load(std::memory_order_relaxed);
    if (next >= end) break;
    // What was read above belongs to this loop if the claim succeeds: the next loop is set up only after this item.
    const uint64_t left = from_front ? word + (uint64_t{1} << kItemBits) : word - 1;
    if (!share->word.compare_exchange_weak(word, left, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    call(context, first + static_cast<int>(from_front ? next : end - 1), thread);
    ++taken;
    word = share->word.load(std::memory_order_acquire);
  }
  return taken;
}

void ThreadPool::Help(uint32_t published, int thread, int threads) {
  const uint64_t epoch = Epoch(published);
  uint32_t taken = Take(&shares_[static_cast<size_t>(thread)], true, epoch, thread);
  for (int i = 1; i < threads; ++i) {
    taken += Take(&shares_[static_cast<size_t>((thread + i) % threads)], false, epoch, thread);
  }
  if (taken == 0) return;
  const uint32_t all = items_.load(std::memory_order_relaxed);
  if (done_.fetch_add(taken, std::memory_order_acq_rel) + taken == all) done_.notify_one();
}

void ThreadPool::RunErased(int items, Call call, void* context) {
  constexpr int kMost = static_cast<int>(kItemMask);
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
  items_.store(count, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  const uint32_t published = published_.load(std::memory_order_relaxed) + 1;
  // Shares beyond the items stay of an earlier loop: nobody finds anything in them.
  const int shares = std::min(items, threads());
  for (int s = 0; s < shares; ++s) {
    const auto border = [&](int i) { return static_cast<uint64_t>(int64_t{items} * i / shares); };
    const uint64_t word = (Epoch(published) << kItemBits | border(s)) << kItemBits | border(s + 1);
    shares_[static_cast<size_t>(s)].word.store(word, std::memory_order_release);
  }
  published_.store(published, std::memory_order_seq_cst);
  published_.notify_all();
  Help(published, 0, threads());
  const auto finished = [&] { return done_.load(std::memory_order_acquire) == count; };
  if (finished() || (may_spin_ && SpinUntil(finished, [] { return kSpin; }))) return;
  for (uint32_t done = done_.load(std::memory_order_acquire); done != count; done = done_.load(std::memory_order_acquire)) {
    done_.wait(done, std::memory_order_acquire);
  }
}

void ThreadPool::Work(int thread, int threads) {
  NameThread("margay-pool");
  PinTo(thread);
  uint32_t seen = 0;
  while (true) {
    const auto news = [&] { return published_.load(std::memory_order_acquire) != seen; };
    const auto longest = [&] { return stay_awake_.load(std::memory_order_relaxed) > 0 ? kSpinAwake : kSpin; };
    if (!news() && !(may_spin_ && SpinUntil(news, longest))) published_.wait(seen, std::memory_order_acquire);
    seen = published_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    Help(seen, thread, threads);
  }
}

}  // namespace margay
