// The kernels in portable C++: every processor can run them.
#include "kernels/cpu/vec_generic.h"
// The vector type comes first.
#include "kernels/cpu/matmul_body.h"
#include "kernels/cpu/pointwise_body.h"
// Uses the row-wise operations.
#include "kernels/cpu/attention_body.h"

namespace margay {

const CpuKernels* GenericKernels() {
  static constexpr CpuKernels kTable = {Matmul, Attention, RmsNorm, AddTo, AddScaled, SiluMul, Softmax, ToBf16, FromBf16};
  return &kTable;
}

}  // namespace margay
