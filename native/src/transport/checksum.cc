#include "transport/checksum.h"

#include <array>
#include <bit>
#include <cstring>

namespace margay {
namespace {

// Odd constants: multiplication by them is a permutation of the 64-bit words, so a lane never forgets a difference.
constexpr uint64_t kSpread = 0x9e3779b97f4a7c15ull;  // 2^64 / golden ratio
constexpr uint64_t kBlend = 0xd6e8feb86659fd93ull;
constexpr size_t kLanes = 8;  // independent chains: the multiplier's latency is hidden
constexpr size_t kStripe = kLanes * sizeof(uint64_t);

uint64_t Mix(uint64_t lane, uint64_t word) { return std::rotl(lane ^ (word * kBlend), 29) * kSpread; }

}  // namespace

uint64_t Checksum(const void* data, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(data);
  std::array<uint64_t, kLanes> lanes;
  for (size_t i = 0; i < kLanes; ++i) lanes[i] = kSpread * (i + 1);
  size_t left = bytes;
  for (; left >= kStripe; left -= kStripe, at += kStripe) {
    std::array<uint64_t, kLanes> words;
    std::memcpy(words.data(), at, kStripe);
    for (size_t i = 0; i < kLanes; ++i) lanes[i] = Mix(lanes[i], words[i]);
  }
  if (left > 0) {
    std::array<uint64_t, kLanes> words{};
    std::memcpy(words.data(), at, left);
    for (size_t i = 0; i < kLanes; ++i) lanes[i] = Mix(lanes[i], words[i]);
  }
  uint64_t sum = static_cast<uint64_t>(bytes) * kBlend;
  for (const uint64_t lane : lanes) sum = Mix(sum, lane);
  sum ^= sum >> 32;
  sum *= kBlend;
  return sum ^ (sum >> 29);
}

}  // namespace margay
