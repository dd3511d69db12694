// The loop of checksum_lanes.h over vectors; the including file defines Words, LowProduct and StoreAround.
#include "core/checksum_lanes.h"

namespace margay {
namespace {

constexpr size_t kVectors = kChecksumStripe / sizeof(Words);

template <bool kStore>
void Stripes(uint64_t* lanes, const std::byte* from, std::byte* to, size_t stripes) {
  Words chains[kVectors];
  __builtin_memcpy(chains, lanes, kChecksumStripe);
  for (; stripes > 0; --stripes) {
#pragma GCC unroll 16
    for (size_t i = 0; i < kVectors; ++i) {
      Words words;
      __builtin_memcpy(&words, from + i * sizeof(Words), sizeof(Words));
      if (kStore) StoreAround(to + i * sizeof(Words), words);
      Words x = chains[i] ^ words;
      x ^= x >> 32;
      x = LowProduct(x, kChecksumFactor) + (x & ~uint64_t{0xffffffff});
      chains[i] = (x << 29) | (x >> 35);
    }
    from += kChecksumStripe;
    if (kStore) to += kChecksumStripe;
  }
  __builtin_memcpy(lanes, chains, kChecksumStripe);
}

}  // namespace
}  // namespace margay
