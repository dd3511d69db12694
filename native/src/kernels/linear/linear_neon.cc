// Matrix products for 64-bit ARM.
#if defined(__aarch64__)
#include "kernels/linear/linear.h"
#include "kernels/vec/vec_neon.h"

namespace margay {
namespace {

struct LinearShape {
  static constexpr int kRows = 5;
  static constexpr int kLoneRows[kWeightFormats] = {kRows, kRows, kRows, kRows};
  static constexpr int Panels(int rows) { return rows == 1 ? 2 : 1; }
  static constexpr int kDirectRows[kWeightFormats] = {kRows, kRows, 2, kRows};
  static constexpr int kUnpacked = 1;
};

}  // namespace
}  // namespace margay

// The vector type and the shape come first.
#include "kernels/linear/linear_body.h"

namespace margay {

const LinearKernels* NeonLinear() { return &kFloatKernels; }

}  // namespace margay
#endif
