// The kernels for AVX2, FMA and F16C.
#if defined(__AVX2__)
#include "kernels/cpu/vec_avx2.h"
// The vector type comes first.
#include "kernels/cpu/matmul_body.h"
#include "kernels/cpu/pointwise_body.h"
// Uses the row-wise operations.
#include "kernels/cpu/attention_body.h"

namespace margay {

const CpuKernels* Avx2Kernels() {
  static constexpr CpuKernels kTable = {Matmul, Attention, RmsNorm, AddTo, AddScaled, SiluMul, Softmax, ToBf16, FromBf16};
  return &kTable;
}

}  // namespace margay
#endif
