// Matrix products for AVX2, FMA and F16C.
#if defined(__AVX2__)
#include "kernels/linear/linear.h"
#include "kernels/vec/vec_avx2.h"

namespace margay {
namespace {

struct LinearShape {
  static constexpr int kRows = 6;
  static constexpr int kLoneRows[kWeightFormats] = {kRows, kRows, kRows, kRows};
  static constexpr int Panels(int rows) { return rows == 1 ? 4 : 1; }
  static constexpr int kDirectRows[kWeightFormats] = {kRows, kRows, 4, kRows};
  static constexpr int kUnpacked = 1;
};

}  // namespace
}  // namespace margay

// The vector type and the shape come first.
#include "kernels/linear/linear_body.h"

namespace margay {

const LinearKernels* Avx2Linear() { return &kFloatKernels; }

}  // namespace margay
#endif
