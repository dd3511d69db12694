// thread_pool: claims about the pool that runs a step's loops.
#include "core/thread_pool.h"

#include <sched.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "claim.h"

namespace margay {
namespace {

double ProcessCpuMs() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

// Loops of every size back to back, with more threads than cores and with as many.
std::string EveryItemOnce(int threads) {
  Finding found;
  ThreadPool pool(threads);
  std::vector<std::atomic<int>> hits(300);
  for (int round = 0; round < 60; ++round) {
    for (const int items : {1, 2, 3, 5, 64, 300}) {
      for (auto& hit : hits) hit = 0;
      pool.Run(items, [&](int item, int thread) { hits[static_cast<size_t>(item)] += thread >= 0 && thread < threads ? 1 : 100; });
      for (int item = 0; item < 300; ++item) found.Same("runs of an item", hits[static_cast<size_t>(item)].load(), item < items ? 1 : 0);
    }
  }
  return found.what();
}

std::string MoreItemsThanAWordHolds() {
  Finding found;
  ThreadPool pool(2);
  constexpr int kItems = (3 << 20) + 5;
  std::atomic<int64_t> sum{0};
  pool.Run(kItems, [&](int item, int) { sum.fetch_add(item, std::memory_order_relaxed); });
  found.Same("the sum of all items", sum.load(), int64_t{kItems} * (kItems - 1) / 2);
  return found.what();
}

// One thread is held by its first item: the others take over the rest of its share.
std::string NoShareWaits() {
  Finding found;
  ThreadPool pool(3);
  std::atomic<int> done{0};
  std::atomic<bool> saw_all{false};
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  pool.Run(30, [&](int item, int) {
    while (item == 0 && done < 29 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    if (item == 0) saw_all = done == 29;
    ++done;
  });
  found.Expect(saw_all, "items waited for the thread whose share they were in");
  return found.what();
}

// Cores that the calling thread may use.
cpu_set_t OwnCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof(set), &set);
  return set;
}

// A loop whose items wait for each other, so that every thread runs one; returns what each thread may use.
std::vector<cpu_set_t> CoresByThread(ThreadPool* pool) {
  const int threads = pool->threads();
  std::vector<cpu_set_t> cores(static_cast<size_t>(threads));
  std::atomic<int> begun{0};
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  pool->Run(threads, [&](int, int thread) {
    cores[static_cast<size_t>(thread)] = OwnCores();
    ++begun;
    while (begun < threads && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  });
  return cores;
}

std::string PinnedToCoresOfTheirOwn() {
  Finding found;
  const cpu_set_t given = OwnCores();
  std::thread([&] {
    ThreadPool pool(0, true);
    found.Expect(CPU_EQUAL(&given, CoresByThread(&pool).data()) != 0, "the caller was pinned without asking for it");
    pool.PinCaller();
    cpu_set_t taken;
    CPU_ZERO(&taken);
    for (const cpu_set_t& cores : CoresByThread(&pool)) {
      cpu_set_t overlap;
      CPU_AND(&overlap, &taken, &cores);
      found.Same("cores of a thread", CPU_COUNT(&cores), 1);
      found.Same("cores that it shares", CPU_COUNT(&overlap), 0);
      CPU_OR(&taken, &taken, &cores);
    }
    found.Expect(CPU_EQUAL(&given, &taken) != 0, "threads are on other cores than those given");
  }).join();
  return found.what();
}

std::string NotPinned(int threads, bool pinned) {
  Finding found;
  const cpu_set_t given = OwnCores();
  std::thread([&] {
    ThreadPool pool(threads, pinned);
    pool.PinCaller();
    for (const cpu_set_t& cores : CoresByThread(&pool)) found.Expect(CPU_EQUAL(&given, &cores) != 0, "a thread may not use all cores");
  }).join();
  return found.what();
}

std::string Idle(bool awake) {
  Finding found;
  ThreadPool pool(0);
  pool.Run(64, [](int, int) {});
  ThreadPool other(2);
  const ThreadPool::Awake stay(awake ? &pool : &other);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const double before = ProcessCpuMs();
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  const double spent = ProcessCpuMs() - before;
  found.Expect(spent < 6, "150 ms without a loop cost " + std::to_string(spent) + " ms of processor time");
  return found.what();
}

}  // namespace
}  // namespace margay

int main() {
  margay::Claims claims;
  claims.Check("every item runs exactly once", margay::EveryItemOnce(margay::ThreadPool::UsableCores()));
  claims.Check("with more threads than cores too", margay::EveryItemOnce(margay::ThreadPool::UsableCores() + 3));
  claims.Check("a loop has any number of items", margay::MoreItemsThanAWordHolds());
  claims.Check("no item waits for the thread it was meant for", margay::NoShareWaits());
  claims.Check("threads of a pinned pool have a core each of those given, the caller when it asks", margay::PinnedToCoresOfTheirOwn());
  claims.Check("a pool with more threads than cores pins none", margay::NotPinned(margay::ThreadPool::UsableCores() + 1, true));
  claims.Check("nor does one that was not told to", margay::NotPinned(margay::ThreadPool::UsableCores(), false));
  claims.Check("an idle pool uses no processor", margay::Idle(false));
  claims.Check("nor does one that is kept awake for long without a loop", margay::Idle(true));
  return claims.ExitCode();
}
