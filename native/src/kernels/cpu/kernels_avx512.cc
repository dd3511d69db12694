// The kernels for AVX-512 F, BW, VL and DQ.
#if defined(__AVX512F__)
#include "kernels/cpu/vec_avx512.h"
// The vector type comes first.
#include "kernels/cpu/matmul_body.h"
#include "kernels/cpu/pointwise_body.h"
// Uses the row-wise operations.
#include "kernels/cpu/attention_body.h"

namespace margay {

const CpuKernels* Avx512Kernels() {
  static constexpr CpuKernels kTable = {Matmul, Attention, RmsNorm, AddTo, AddScaled, SiluMul, Softmax, ToBf16, FromBf16};
  return &kTable;
}

}  // namespace margay
#endif
