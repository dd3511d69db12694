#include "core/cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace margay {

#if defined(__x86_64__)
namespace {

// Register state that the operating system saves: XCR0.
uint64_t SavedState() {
  uint32_t low = 0;
  uint32_t high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool Bit(uint32_t word, int bit) { return (word >> bit & 1U) != 0; }

}  // namespace

CpuFeatures DetectCpuFeatures() {
  CpuFeatures features;
  uint32_t a = 0;
  uint32_t b = 0;
  uint32_t c = 0;
  uint32_t d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return features;
  const bool xsave = Bit(c, 27);
  const bool avx = Bit(c, 28) && Bit(c, 12) && Bit(c, 29);  // AVX, FMA, F16C
  if (!xsave || !avx || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return features;
  constexpr uint64_t kYmm = 0x6;
  constexpr uint64_t kZmm = 0xe6;
  constexpr uint64_t kTiles = 0x60000;
  const uint64_t saved = SavedState();
  features.avx2 = Bit(b, 5) && (saved & kYmm) == kYmm;
  features.avx512 = features.avx2 && Bit(b, 16) && Bit(b, 17) && Bit(b, 30) && Bit(b, 31) && (saved & kZmm) == kZmm;
  features.avx512_vbmi = features.avx512 && Bit(c, 1);
  features.avx512_vnni = features.avx512 && Bit(c, 11);
  features.amx = features.avx512 && Bit(d, 22) && Bit(d, 24) && Bit(d, 25) && (saved & kTiles) == kTiles;
  features.avx512_bf16 = features.avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && Bit(a, 5);
  return features;
}
#else
CpuFeatures DetectCpuFeatures() { return {}; }
#endif

}  // namespace margay
