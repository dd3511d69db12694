#include <immintrin.h>

#include "frame/register_loops.h"

namespace margay::bench {
namespace {

constexpr int kChains = 12;

void Run(int64_t passes) {
  __m256 sums[kChains];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  const __m256 a = _mm256_set1_ps(1.0F);
  const __m256 b = _mm256_set1_ps(1e-9F);
  for (int64_t i = 0; i < passes; ++i) {
#pragma GCC unroll 12
    for (__m256& sum : sums) {
      sum = _mm256_fmadd_ps(a, b, sum);
      asm volatile("" : "+x"(sum));
    }
  }
}

}  // namespace

RegisterLoop Fp32Avx2() { return {kChains * 8 * 2, Run}; }

}  // namespace margay::bench
