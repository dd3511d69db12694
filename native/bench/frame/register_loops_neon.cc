#if defined(__aarch64__)
#include <arm_neon.h>

#include "frame/register_loops.h"

namespace margay::bench {
namespace {

constexpr int kChains = 16;

void Run(int64_t passes) {
  float32x4_t sums[kChains];
  for (float32x4_t& sum : sums) sum = vdupq_n_f32(0);
  const float32x4_t a = vdupq_n_f32(1.0F);
  const float32x4_t b = vdupq_n_f32(1e-9F);
  for (int64_t i = 0; i < passes; ++i) {
#pragma GCC unroll 16
    for (float32x4_t& sum : sums) {
      sum = vfmaq_f32(sum, a, b);
      asm volatile("" : "+w"(sum));
    }
  }
}

}  // namespace

RegisterLoop Fp32Neon() { return {kChains * 4 * 2, Run}; }

}  // namespace margay::bench
#endif
