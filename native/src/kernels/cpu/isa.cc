#include "kernels/cpu/isa.h"

#include "core/cpu_features.h"

namespace margay {

std::vector<std::pair<std::string, const CpuKernels*>> UsableKernels() {
  std::vector<std::pair<std::string, const CpuKernels*>> usable = {{"generic", GenericKernels()}};
#if defined(__x86_64__)
  const CpuFeatures features = DetectCpuFeatures();
  if (features.avx2) usable.emplace_back("avx2", Avx2Kernels());
  if (features.avx512) usable.emplace_back("avx512", Avx512Kernels());
#endif
  return usable;
}

}  // namespace margay
