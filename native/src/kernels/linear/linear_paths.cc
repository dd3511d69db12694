#include "kernels/linear/linear_paths.h"

#include <algorithm>
#include <chrono>

#include "core/cpu_features.h"
#include "core/tile_state.h"
#include "kernels/linear/panel_layout.h"

namespace margay {
namespace {

constexpr size_t kCacheLine = 64;

[[maybe_unused]] LinearKernels With(LinearKernels kernels, WeightFormat format, const LinearKernel* kernel) {
  kernels.formats[static_cast<size_t>(format)] = *kernel;
  return kernels;
}

std::vector<LinearPath> MakePaths() {
  std::vector<LinearPath> paths = {{"generic", *GenericLinear()}};
#if defined(__x86_64__)
  const CpuFeatures features = DetectCpuFeatures();
  if (features.avx2) paths.push_back({"avx2", *Avx2Linear()});
  if (features.avx512) paths.push_back({"avx512", *Avx512Linear()});
  if (features.avx512_vnni) paths.push_back({"avx512vnni", With(*Avx512Linear(), WeightFormat::kInt8, Avx512VnniLinear())});
  if (features.avx512_bf16) paths.push_back({"avx512bf16", With(paths.back().kernels, WeightFormat::kBf16, Avx512Bf16Linear())});
  if (features.amx && GrantTileState()) paths.push_back({"amx", With(paths.back().kernels, WeightFormat::kBf16, AmxLinear())});
#elif defined(__aarch64__)
  paths.push_back({"neon", *NeonLinear()});
#endif
  return paths;
}

// Least seconds of one strip of 16 rows that stays in the first cache: arithmetic alone.
double SecondsOfStrip(const LinearKernel& kernel) {
  constexpr int kIn = 256;
  constexpr int kSlices = 12;
  constexpr int kRepeats = 8;
  const int rows = kernel.strip_rows;
  const std::vector<float> x(static_cast<size_t>(rows) * kIn, 1.0F);
  std::vector<float> y(static_cast<size_t>(rows) * kPanel);
  const std::vector<uint8_t> weights(PanelBytes(WeightFormat::kBf16, kIn) + kCacheLine);
  std::vector<uint8_t> packed(static_cast<size_t>(kernel.packed_bytes(rows, kIn)) + kCacheLine);
  const auto aligned = [](auto* p) { return p + (kCacheLine - reinterpret_cast<uintptr_t>(p) % kCacheLine) % kCacheLine; };
  const LinearRows from = {x.data(), kIn, nullptr, rows, kIn, aligned(packed.data())};
  kernel.pack(&from);
  const LinearStrip strip = {from.packed, rows, kIn, aligned(weights.data()), static_cast<int64_t>(PanelBytes(WeightFormat::kBf16, kIn)),
                             nullptr, 0, 1, kPanel, y.data(), kPanel};
  double least = 1;
  for (int slice = 0; slice < kSlices; ++slice) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kRepeats; ++i) kernel.multiply(&strip);
    least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return least;
}

}  // namespace

const std::vector<LinearPath>& UsableLinearPaths() {
  static const std::vector<LinearPath> kPaths = MakePaths();
  return kPaths;
}

const LinearKernels* FindLinearPath(const std::string& name) {
  const std::vector<LinearPath>& paths = UsableLinearPaths();
  const auto found = std::find_if(paths.begin(), paths.end(), [&](const LinearPath& path) { return path.name == name; });
  return found == paths.end() ? nullptr : &found->kernels;
}

bool Bf16DotIsFaster() {
  static const bool kFaster = [] {
    const LinearKernels* dot = FindLinearPath("avx512bf16");
    const auto seconds = [](const LinearKernels* kernels) { return SecondsOfStrip(kernels->formats[static_cast<size_t>(WeightFormat::kBf16)]); };
    return dot != nullptr && seconds(dot) < seconds(FindLinearPath("avx512"));
  }();
  return kFaster;
}

}  // namespace margay
