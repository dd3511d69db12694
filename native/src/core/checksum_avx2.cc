// The checksum's loop for AVX2.
#if defined(__AVX2__)
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace {

using Words __attribute__((vector_size(32))) = uint64_t;

inline Words LowProduct(const Words& x, uint64_t factor) {
  return (Words)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(static_cast<long long>(factor)));
}

inline void StoreAround(std::byte* to, const Words& words) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)words);
}

}  // namespace

#include "core/checksum_body.h"

namespace margay {

void Avx2Stripes(uint64_t* lanes, const std::byte* from, std::byte* to, size_t stripes) {
  if (to == nullptr) return Stripes<false>(lanes, from, to, stripes);
  Stripes<true>(lanes, from, to, stripes);
  _mm_sfence();
}

}  // namespace margay
#endif
