// Waiting for a word that another thread or process raises: a short spin, then a futex. A futex needs only to read the
// word, so that a waiter cannot write what it waits for.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace margay {

using WaitClock = std::chrono::steady_clock;

// The number is reached, also when counting has begun anew after 2^32.
inline bool Reached(uint32_t word, uint32_t number) { return static_cast<int32_t>(word - number) >= 0; }

void WakeAll(const std::atomic<uint32_t>* word);

// Sleeps until the word differs from `seen`, somebody wakes it or `until` is over; sometimes returns for nothing.
void SleepOn(const std::atomic<uint32_t>* word, uint32_t seen, WaitClock::time_point until);

void PauseCore();
void YieldCore();

// True as soon as ready() is; false after a moment of trying. Other threads get the core early.
template <typename Ready>
bool SpinBriefly(Ready&& ready) {
  constexpr auto kSpin = std::chrono::microseconds(50);
  constexpr auto kSpinAlone = std::chrono::microseconds(5);
  const auto start = WaitClock::now();
  while (true) {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      PauseCore();
    }
    const auto spun = WaitClock::now() - start;
    if (spun > kSpin) return false;
    if (spun > kSpinAlone) YieldCore();
  }
}

}  // namespace margay
