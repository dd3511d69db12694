// Passes over a vocabulary in portable C++: every processor can run them.
#include "kernels/vec/vec_generic.h"
// The vector type comes first.
#include "kernels/sample/sample_body.h"

namespace margay {

const SampleKernels* GenericSample() {
  static constexpr SampleKernels kTable = {Scan, Mass, Masses, AtLeast};
  return &kTable;
}

}  // namespace margay
