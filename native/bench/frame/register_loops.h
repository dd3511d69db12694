// Loops that do arithmetic on registers alone: what each vector unit can do at most. One file per instruction set, with
// no std headers (see CMakeLists.txt).
#pragma once

#include <cstdint>

namespace margay::bench {

struct RegisterLoop {
  double operations;  // multiplications and additions of one pass
  void (*run)(int64_t passes);
};

RegisterLoop Fp32Generic();
#if defined(__x86_64__)
RegisterLoop Fp32Avx2();
RegisterLoop Fp32Avx512();
RegisterLoop Bf16Avx512();
RegisterLoop Int8Avx512();
// The process must have been granted the tiles.
RegisterLoop Bf16Amx();
RegisterLoop Int8Amx();
#elif defined(__aarch64__)
RegisterLoop Fp32Neon();
#endif

}  // namespace margay::bench
