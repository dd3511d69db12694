// The inner loop of the checksum: 32 chains of 64-bit words, so that the latency of a step is hidden and a step of all
// chains is a few instructions on any vector unit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace margay {

inline constexpr size_t kChecksumLanes = 32;
inline constexpr size_t kChecksumStripe = kChecksumLanes * sizeof(uint64_t);
inline constexpr uint64_t kChecksumFactor = 0x9e3779b1;  // odd, 32 bits

// Word i of every stripe goes into lane i:
//   x = lane ^ word;  x ^= x >> 32;  x = low half of x * factor + high half of x in place;  lane = rotate(x, 29)
// Each is a permutation, of the lane for every word and of the word for every lane, so that no difference is ever
// forgotten; and one flipped bit has become many when the next word comes, so that one more cannot undo it. With `to`,
// a multiple of 64, the stripes are also stored there, around the caches; it may be null.
using ChecksumStripes = void (*)(uint64_t* lanes, const std::byte* from, std::byte* to, size_t stripes);

void GenericStripes(uint64_t* lanes, const std::byte* from, std::byte* to, size_t stripes);
#if defined(__x86_64__)
void Avx2Stripes(uint64_t* lanes, const std::byte* from, std::byte* to, size_t stripes);
void Avx512Stripes(uint64_t* lanes, const std::byte* from, std::byte* to, size_t stripes);
#endif

}  // namespace margay
