// Matrix products for AVX-512 F, BW, VL and DQ.
#if defined(__AVX512F__)
#include "kernels/linear/linear.h"
#include "kernels/vec/vec_avx512.h"

namespace margay {
namespace {

struct LinearShape {
  static constexpr int kRows = 8;
  static constexpr int kLoneRows[kWeightFormats] = {16, kRows, kRows, kRows};
  static constexpr int Panels(int rows) { return rows <= 2 ? 8 : rows <= 5 ? 4 : rows <= 8 ? 3 : rows <= 12 ? 2 : 1; }
  static constexpr int kDirectRows[kWeightFormats] = {kRows, kRows, 5, kRows};
  static constexpr int kUnpacked = 3;
};

}  // namespace
}  // namespace margay

// The vector type and the shape come first.
#include "kernels/linear/linear_body.h"

namespace margay {

const LinearKernels* Avx512Linear() { return &kFloatKernels; }

}  // namespace margay
#endif
