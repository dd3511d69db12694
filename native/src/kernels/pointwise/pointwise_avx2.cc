// Row-wise operations for AVX2, FMA and F16C.
#if defined(__AVX2__)
#include "kernels/vec/vec_avx2.h"
// The vector type comes first.
#include "kernels/pointwise/fp8_body.h"
#include "kernels/pointwise/pointwise_body.h"

namespace margay {

const PointwiseKernels* Avx2Pointwise() {
  static constexpr PointwiseKernels kTable = {RmsNorm, RmsNormBf16, AddNorm, WeightedSum, SiluMul,
                                             Softmax, TopSlots,    ToBf16,  FromBf16,
                                             AddBf16, AddScaled,   ToFp8,   FromFp8};
  return &kTable;
}

}  // namespace margay
#endif
