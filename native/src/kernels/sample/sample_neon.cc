// Passes over a vocabulary for 64-bit ARM.
#if defined(__aarch64__)
#include "kernels/vec/vec_neon.h"
// The vector type comes first.
#include "kernels/sample/sample_body.h"

namespace margay {

const SampleKernels* NeonSample() {
  static constexpr SampleKernels kTable = {Scan, Mass, Masses, AtLeast};
  return &kTable;
}

}  // namespace margay
#endif
