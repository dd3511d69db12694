#include "core/trace.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>

namespace margay::trace {
namespace {

// Written by one thread at a time as good as always: two meet only when one is late by the whole ring. The ticket tells a
// reader whether all fields are of one span.
struct Slot {
  std::atomic<uint64_t> ticket{0};  // 0: being written or empty
  std::atomic<const char*> name{nullptr};
  std::atomic<int> thread{0};
  std::atomic<int64_t> start_ns{0};
  std::atomic<int64_t> ns{0};
};

Slot ring[kMostSpans];
std::atomic<uint64_t> next_ticket{0};
std::atomic<uint64_t> first_ticket{0};  // of this recording

}  // namespace

namespace internal {

std::atomic<bool> recording{false};

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

void Record(const char* name, int64_t start_ns, int64_t end_ns) {
  thread_local const int thread = gettid();
  const int64_t ns = end_ns - start_ns;
  const uint64_t ticket = next_ticket.fetch_add(1, std::memory_order_relaxed);
  Slot& slot = ring[ticket % kMostSpans];
  slot.ticket.store(0, std::memory_order_relaxed);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  slot.name.store(name, std::memory_order_release);
  slot.thread.store(thread, std::memory_order_release);
  slot.start_ns.store(start_ns, std::memory_order_release);
  slot.ns.store(ns, std::memory_order_release);
  slot.ticket.store(ticket + 1, std::memory_order_release);
}

}  // namespace internal

void Tell(const char* name, int64_t start_ns, int64_t end_ns) {
  if (!internal::recording.load(std::memory_order_relaxed)) return;
  using std::chrono::steady_clock;
  const int64_t monotonic_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(steady_clock::now().time_since_epoch()).count();
  const int64_t ahead_ns = internal::NowNs() - monotonic_ns;
  internal::Record(name, start_ns + ahead_ns, end_ns + ahead_ns);
}

void Start() {
  first_ticket.store(next_ticket.load());
  internal::recording.store(true);
}

std::vector<Event> Take() {
  internal::recording.store(false);
  const uint64_t end = next_ticket.load();
  const uint64_t first = std::max(first_ticket.load(), end > kMostSpans ? end - kMostSpans : 0);
  std::vector<Event> events;
  events.reserve(end - first);
  for (uint64_t ticket = first; ticket < end; ++ticket) {
    const Slot& slot = ring[ticket % kMostSpans];
    if (slot.ticket.load(std::memory_order_acquire) != ticket + 1) continue;
    const Event event{slot.name.load(std::memory_order_acquire), slot.thread.load(std::memory_order_acquire),
                      static_cast<double>(slot.start_ns.load(std::memory_order_acquire)) / 1e6,
                      static_cast<double>(slot.ns.load(std::memory_order_acquire)) / 1e6};
    if (slot.ticket.load(std::memory_order_relaxed) == ticket + 1) events.push_back(event);
  }
  return events;
}

std::string ThreadName(int thread) {
  std::ifstream comm("/proc/self/task/" + std::to_string(thread) + "/comm");
  std::string name;
  std::getline(comm, name);
  return name.empty() ? "thread " + std::to_string(thread) : name;
}

}  // namespace margay::trace
