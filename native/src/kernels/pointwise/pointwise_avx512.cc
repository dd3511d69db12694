// Row-wise operations for AVX-512 F, BW, VL and DQ.
#if defined(__AVX512F__)
#include "kernels/vec/vec_avx512.h"
// The vector type comes first.
#include "kernels/pointwise/fp8_avx512.h"
#include "kernels/pointwise/pointwise_body.h"

namespace margay {

const PointwiseKernels* Avx512Pointwise() {
  static constexpr PointwiseKernels kTable = {RmsNorm, RmsNormBf16, AddNorm, WeightedSum, SiluMul,
                                             Softmax, TopSlots,    ToBf16,  FromBf16,
                                             AddBf16, AddScaled,   ToFp8,   FromFp8};
  return &kTable;
}

}  // namespace margay
#endif
