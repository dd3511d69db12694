// The checksum's loop for any processor; 16-byte vectors are part of every 64-bit instruction set.
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using Words __attribute__((vector_size(16))) = uint64_t;

inline Words LowProduct(const Words& x, uint64_t factor) {
#if defined(__x86_64__)
  return (Words)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(static_cast<long long>(factor)));
#else
  return (x & 0xffffffff) * factor;
#endif
}

inline void StoreAround(std::byte* to, const Words& words) {
#if defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)words);
#else
  __builtin_memcpy(to, &words, sizeof words);
#endif
}

}  // namespace

#include "core/checksum_body.h"

namespace margay {

void GenericStripes(uint64_t* lanes, const std::byte* from, std::byte* to, size_t stripes) {
  if (to == nullptr) return Stripes<false>(lanes, from, to, stripes);
  Stripes<true>(lanes, from, to, stripes);
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace margay
