// What threads of this process did when: spans in a ring of fixed size. Off, a span costs one branch.
//
//   off -> recording -> off
//
// Owns the ring, one per process. T1 recording never allocates and never waits. T2 the ring holds the latest spans; one
// that is being written while the ring is read is left out. T3 names are string literals: only their addresses are kept.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace margay::trace {

inline constexpr size_t kMostSpans = size_t{1} << 16;

struct Event {
  const char* name;
  int thread;  // as the kernel numbers it
  double start_ms;  // since the Unix epoch
  double ms;
};

// Forgets what was recorded before.
void Start();
// Ends recording; oldest first.
std::vector<Event> Take();
std::string ThreadName(int thread);

namespace internal {
extern std::atomic<bool> recording;
int64_t NowNs();
void Record(const char* name, int64_t start_ns, int64_t end_ns);
}  // namespace internal

// Something that passed beside this thread, on CLOCK_MONOTONIC; told by the thread that it mattered to.
void Tell(const char* name, int64_t start_ns, int64_t end_ns);

// From its construction to its destruction.
class Span {
 public:
  explicit Span(const char* name) {
    if (!internal::recording.load(std::memory_order_relaxed)) return;
    name_ = name;
    start_ns_ = internal::NowNs();
  }
  ~Span() {
    if (name_ != nullptr) internal::Record(name_, start_ns_, internal::NowNs());
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  const char* name_ = nullptr;
  int64_t start_ns_ = 0;
};

}  // namespace margay::trace
