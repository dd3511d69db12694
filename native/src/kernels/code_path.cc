#include "kernels/code_path.h"

#include <algorithm>
#include <utility>

#include "core/cpu_features.h"
#include "kernels/linear/linear_paths.h"

namespace margay {

std::vector<CodePath> UsableCodePaths() {
  std::vector<CodePath> usable;
  const auto add = [&](const char* name, const char* linear, const AttentionKernels* attention, const PointwiseKernels* pointwise,
                       const SampleKernels* sample) {
    usable.push_back({name, FindLinearPath(linear), attention, pointwise, sample});
  };
  add("generic", "generic", GenericAttention(), GenericPointwise(), GenericSample());
#if defined(__x86_64__)
  const CpuFeatures features = DetectCpuFeatures();
  if (features.avx2) add("avx2", "avx2", Avx2Attention(), Avx2Pointwise(), Avx2Sample());
  if (features.avx512) {
    const char* linear = features.avx512_vnni ? "avx512vnni" : "avx512";
    add("avx512", linear, Avx512Attention(), Avx512Pointwise(), Avx512Sample());
  }
  if (features.avx512_bf16) {
    add("avx512bf16", "avx512bf16", Avx512Attention(), Avx512Pointwise(), Avx512Sample());
    if (!Bf16DotIsFaster()) std::swap(usable.back(), usable[usable.size() - 2]);
  }
  if (FindLinearPath("amx") != nullptr) add("amx", "amx", AmxAttention(), Avx512Pointwise(), Avx512Sample());
#elif defined(__aarch64__)
  add("neon", "neon", NeonAttention(), NeonPointwise(), NeonSample());
#endif
  return usable;
}

const CodePath& BestCodePath(const std::vector<CodePath>& usable, bool timed) {
  if (timed || usable.back().name == "amx") return usable.back();
  const auto untimed = std::find_if(usable.begin(), usable.end(), [](const CodePath& path) { return path.name == "avx512"; });
  return untimed == usable.end() ? usable.back() : *untimed;
}

CodePath UsableCodePath(const std::string& name) {
  const std::vector<CodePath> usable = UsableCodePaths();
  const auto named = std::find_if(usable.begin(), usable.end(), [&](const CodePath& path) { return path.name == name; });
  return named == usable.end() ? usable.back() : *named;
}

}  // namespace margay
