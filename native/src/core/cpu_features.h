// What this processor and its operating system can run, from feature bits alone.
#pragma once

namespace margay {

struct CpuFeatures {
  bool avx2 = false;    // AVX2, FMA and F16C
  bool avx512 = false;  // AVX-512 F, BW, VL and DQ, and all of the above
};

CpuFeatures DetectCpuFeatures();

}  // namespace margay
