// Row-wise operations in portable C++: every processor can run them.
#include "kernels/vec/vec_generic.h"
// The vector type comes first.
#include "kernels/pointwise/fp8_body.h"
#include "kernels/pointwise/pointwise_body.h"

namespace margay {

const PointwiseKernels* GenericPointwise() {
  static constexpr PointwiseKernels kTable = {RmsNorm, RmsNormBf16, AddNorm, WeightedSum, SiluMul,
                                             Softmax, TopSlots,    ToBf16,  FromBf16,
                                             AddBf16, AddScaled,   ToFp8,   FromFp8};
  return &kTable;
}

}  // namespace margay
