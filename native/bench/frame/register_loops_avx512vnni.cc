#include <immintrin.h>

#include "frame/register_loops.h"

namespace margay::bench {
namespace {

constexpr int kChains = 16;

void Run(int64_t passes) {
  __m512i sums[kChains];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  const __m512i a = _mm512_set1_epi8(1);
  const __m512i b = _mm512_set1_epi8(2);
  for (int64_t i = 0; i < passes; ++i) {
#pragma GCC unroll 16
    for (__m512i& sum : sums) {
      asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));  // GCC 12 keeps integer sums in memory otherwise
    }
  }
}

}  // namespace

RegisterLoop Int8Avx512() { return {kChains * 64 * 2, Run}; }

}  // namespace margay::bench
