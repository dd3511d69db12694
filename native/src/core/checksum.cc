#include "core/checksum.h"

#include <bit>
#include <cstring>

#include "core/checksum_lanes.h"
#include "core/cpu_features.h"

namespace margay {
namespace {

// Odd constants: multiplication by them is a permutation of the 64-bit words, so a difference is never forgotten.
constexpr uint64_t kSpread = 0x9e3779b97f4a7c15ull;  // 2^64 / golden ratio
constexpr uint64_t kBlend = 0xd6e8feb86659fd93ull;

uint64_t Mix(uint64_t sum, uint64_t word) { return std::rotl(sum ^ (word * kBlend), 29) * kSpread; }

ChecksumStripes ChooseStripes() {
#if defined(__x86_64__)
  const CpuFeatures features = DetectCpuFeatures();
  if (features.avx512) return Avx512Stripes;
  if (features.avx2) return Avx2Stripes;
#endif
  return GenericStripes;
}

uint64_t Sum(const std::byte* from, std::byte* to, size_t bytes) {
  static const ChecksumStripes stripes_of = ChooseStripes();
  uint64_t sum = static_cast<uint64_t>(bytes) * kBlend;
  const size_t stripes = bytes / kChecksumStripe;
  if (stripes > 0) {
    uint64_t lanes[kChecksumLanes];
    for (size_t i = 0; i < kChecksumLanes; ++i) lanes[i] = kSpread * (i + 1);
    stripes_of(lanes, from, to, stripes);
    for (const uint64_t lane : lanes) sum = Mix(sum, lane);
  }
  for (size_t at = stripes * kChecksumStripe; at < bytes; at += sizeof(uint64_t)) {
    const size_t some = bytes - at < sizeof(uint64_t) ? bytes - at : sizeof(uint64_t);
    uint64_t word = 0;
    std::memcpy(&word, from + at, some);
    if (to != nullptr) std::memcpy(to + at, &word, some);
    sum = Mix(sum, word);
  }
  sum ^= sum >> 32;
  sum *= kBlend;
  return sum ^ (sum >> 29);
}

}  // namespace

uint64_t Checksum(const void* data, size_t bytes) { return Sum(static_cast<const std::byte*>(data), nullptr, bytes); }

uint64_t CopyWithChecksum(void* to, const void* from, size_t bytes) {
  constexpr uintptr_t kAlign = 64;
  if (reinterpret_cast<uintptr_t>(to) % kAlign == 0) {
    return Sum(static_cast<const std::byte*>(from), static_cast<std::byte*>(to), bytes);
  }
  std::memcpy(to, from, bytes);
  return Checksum(to, bytes);
}

}  // namespace margay
