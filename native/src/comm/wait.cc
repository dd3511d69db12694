#include "comm/wait.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace margay {

void WakeAll(const std::atomic<uint32_t>* word) {
  syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void SleepOn(const std::atomic<uint32_t>* word, uint32_t seen, WaitClock::time_point until) {
  const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(until - WaitClock::now()).count();
  if (left <= 0) return;
  const timespec longest{static_cast<time_t>(left / 1'000'000'000), static_cast<long>(left % 1'000'000'000)};
  syscall(SYS_futex, word, FUTEX_WAIT, seen, &longest, nullptr, 0);
}

void PauseCore() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void YieldCore() { sched_yield(); }

}  // namespace margay
