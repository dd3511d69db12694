// Row-wise operations for 64-bit ARM.
#if defined(__aarch64__)
#include "kernels/vec/vec_neon.h"
// The vector type comes first.
#include "kernels/pointwise/fp8_body.h"
#include "kernels/pointwise/pointwise_body.h"

namespace margay {

const PointwiseKernels* NeonPointwise() {
  static constexpr PointwiseKernels kTable = {RmsNorm, RmsNormBf16, AddNorm, WeightedSum, SiluMul,
                                             Softmax, TopSlots,    ToBf16,  FromBf16,
                                             AddBf16, AddScaled,   ToFp8,   FromFp8};
  return &kTable;
}

}  // namespace margay
#endif
