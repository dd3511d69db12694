#include "kernels/code_path.h"

#include "core/cpu_features.h"

namespace margay {

std::vector<CodePath> UsableCodePaths() {
  std::vector<CodePath> usable = {{"generic", GenericLinear(), GenericAttention(), GenericPointwise()}};
#if defined(__x86_64__)
  const CpuFeatures features = DetectCpuFeatures();
  if (features.avx2) usable.push_back({"avx2", Avx2Linear(), Avx2Attention(), Avx2Pointwise()});
  if (features.avx512) usable.push_back({"avx512", Avx512Linear(), Avx512Attention(), Avx512Pointwise()});
#endif
  return usable;
}

}  // namespace margay
