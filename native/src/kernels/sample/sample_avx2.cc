// Passes over a vocabulary for AVX2, FMA and F16C.
#if defined(__AVX2__)
#include "kernels/vec/vec_avx2.h"
// The vector type comes first.
#include "kernels/sample/sample_body.h"

namespace margay {

const SampleKernels* Avx2Sample() {
  static constexpr SampleKernels kTable = {Scan, Mass, Masses, AtLeast};
  return &kTable;
}

}  // namespace margay
#endif
