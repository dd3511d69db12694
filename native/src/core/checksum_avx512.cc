// The checksum's loop for AVX-512 F.
#if defined(__AVX512F__)
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace {

using Words __attribute__((vector_size(64))) = uint64_t;

inline Words LowProduct(const Words& x, uint64_t factor) {
  return (Words)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(static_cast<long long>(factor)));
}

inline void StoreAround(std::byte* to, const Words& words) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)words);
}

}  // namespace

#include "core/checksum_body.h"

namespace margay {

void Avx512Stripes(uint64_t* lanes, const std::byte* from, std::byte* to, size_t stripes) {
  if (to == nullptr) return Stripes<false>(lanes, from, to, stripes);
  Stripes<true>(lanes, from, to, stripes);
  _mm_sfence();
}

}  // namespace margay
#endif
