// Matrix products for AVX-512 F, BW, VL and DQ.
#if defined(__AVX512F__)
#include "kernels/vec/vec_avx512.h"
// The vector type comes first.
#include "kernels/linear/linear_body.h"

namespace margay {

const LinearKernels* Avx512Linear() {
  static constexpr LinearKernels kTable = {Matmul};
  return &kTable;
}

}  // namespace margay
#endif
