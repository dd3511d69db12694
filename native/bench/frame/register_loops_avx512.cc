#include <immintrin.h>

#include "frame/register_loops.h"

namespace margay::bench {
namespace {

constexpr int kChains = 16;

void Run(int64_t passes) {
  __m512 sums[kChains];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  const __m512 a = _mm512_set1_ps(1.0F);
  const __m512 b = _mm512_set1_ps(1e-9F);
  for (int64_t i = 0; i < passes; ++i) {
#pragma GCC unroll 16
    for (__m512& sum : sums) {
      sum = _mm512_fmadd_ps(a, b, sum);
      asm volatile("" : "+v"(sum));
    }
  }
}

}  // namespace

RegisterLoop Fp32Avx512() { return {kChains * 16 * 2, Run}; }

}  // namespace margay::bench
