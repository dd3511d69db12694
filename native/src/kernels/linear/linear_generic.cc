// Matrix products in portable C++: every processor can run them.
#include "kernels/vec/vec_generic.h"

namespace margay {
namespace {

struct LinearShape {
  static constexpr int kRows = 4;
  static constexpr int Panels(int rows) { return rows == 1 ? 2 : 1; }
};

}  // namespace
}  // namespace margay

// The vector type and the shape come first.
#include "kernels/linear/linear_body.h"

namespace margay {

const LinearKernels* GenericLinear() { return &kFloatKernels; }

}  // namespace margay
