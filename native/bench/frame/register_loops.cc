#include "frame/register_loops.h"

namespace margay::bench {
namespace {

using Vec = float __attribute__((vector_size(16)));
constexpr int kChains = 12;

void Run(int64_t passes) {
  Vec sums[kChains] = {};
  const Vec a = {1.0F, 1.0F, 1.0F, 1.0F};
  const Vec b = {1e-9F, 1e-9F, 1e-9F, 1e-9F};
  for (int64_t i = 0; i < passes; ++i) {
#pragma GCC unroll 12
    for (Vec& sum : sums) sum = sum * a + b;
#pragma GCC unroll 12
    for (Vec& sum : sums) {
#if defined(__x86_64__)
      asm volatile("" : "+x"(sum));
#else
      asm volatile("" : "+w"(sum));
#endif
    }
  }
}

}  // namespace

RegisterLoop Fp32Generic() { return {kChains * 4 * 2, Run}; }

}  // namespace margay::bench
