#include <immintrin.h>

#include "frame/register_loops.h"

namespace margay::bench {
namespace {

constexpr int kChains = 16;

void Run(int64_t passes) {
  __m512 sums[kChains];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80);
  const __m512bh b = (__m512bh)_mm512_set1_epi16(0x3180);
  for (int64_t i = 0; i < passes; ++i) {
#pragma GCC unroll 16
    for (__m512& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, a, b);
      asm volatile("" : "+v"(sum));
    }
  }
}

}  // namespace

RegisterLoop Bf16Avx512() { return {kChains * 32 * 2, Run}; }

}  // namespace margay::bench
