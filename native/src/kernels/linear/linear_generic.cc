// Matrix products in portable C++: every processor can run them.
#include "kernels/vec/vec_generic.h"
// The vector type comes first.
#include "kernels/linear/linear_body.h"

namespace margay {

const LinearKernels* GenericLinear() {
  static constexpr LinearKernels kTable = {Matmul};
  return &kTable;
}

}  // namespace margay
