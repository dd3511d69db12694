// Matrix products for AVX2, FMA and F16C.
#if defined(__AVX2__)
#include "kernels/vec/vec_avx2.h"
// The vector type comes first.
#include "kernels/linear/linear_body.h"

namespace margay {

const LinearKernels* Avx2Linear() {
  static constexpr LinearKernels kTable = {Matmul};
  return &kTable;
}

}  // namespace margay
#endif
