// Passes over a vocabulary for AVX-512 F, BW, VL and DQ.
#if defined(__AVX512F__)
#include "kernels/vec/vec_avx512.h"
// The vector type comes first.
#include "kernels/sample/sample_body.h"

namespace margay {

const SampleKernels* Avx512Sample() {
  static constexpr SampleKernels kTable = {Scan, Mass, Masses, AtLeast};
  return &kTable;
}

}  // namespace margay
#endif
