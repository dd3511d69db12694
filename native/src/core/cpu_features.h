// What this processor and its operating system can run, from feature bits alone.
#pragma once

namespace margay {

struct CpuFeatures {
  bool avx2 = false;    // AVX2, FMA and F16C
  bool avx512 = false;  // AVX-512 F, BW, VL and DQ, and all of the above
  // With avx512:
  bool avx512_bf16 = false;
  bool avx512_vbmi = false;
  bool avx512_vnni = false;
  // With avx512: tiles, bf16 and int8 products. The kernel must still grant the tile state to the process.
  bool amx = false;
};

CpuFeatures DetectCpuFeatures();

}  // namespace margay
