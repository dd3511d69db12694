// Matrix products in portable C++: every processor can run them.
#include "kernels/linear/linear.h"
#include "kernels/vec/vec_generic.h"

namespace margay {
namespace {

struct LinearShape {
  static constexpr int kRows = 4;
  static constexpr int kLoneRows[kWeightFormats] = {kRows, kRows, kRows, kRows};
  static constexpr int Panels(int rows) { return rows == 1 ? 2 : 1; }
  static constexpr int kDirectRows[kWeightFormats] = {kRows, kRows, kRows, kRows};
  static constexpr int kUnpacked = 1;
};

}  // namespace
}  // namespace margay

// The vector type and the shape come first.
#include "kernels/linear/linear_body.h"

namespace margay {

const LinearKernels* GenericLinear() { return &kFloatKernels; }

}  // namespace margay
