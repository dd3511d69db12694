// Passes over a vocabulary of logits: one function table per instruction set, chosen at run time.
//
// The body (sample_body.h) is compiled once per instruction set over its vector type (vec/vec_*.h). No std headers here
// (see linear/linear.h).
#pragma once

#include <cstdint>

namespace margay {

inline constexpr int kLogitGroup = 64;  // neighbours that share a maximum

// A logit that is no number counts as less than any number, and has no mass.
struct SampleKernels {
  // The greatest value, and per group of kLogitGroup values its greatest in tops [ceil(n / kLogitGroup)]; -inf where none
  // is a number. Returns whether all values are finite.
  bool (*scan)(const float* x, int n, float* top, float* tops);
  // Sum of exp((x - top) * inverse), values with (x - top) * inverse below -87 left out.
  double (*mass)(const float* x, int n, float top, float inverse);
  // The terms of that sum.
  void (*masses)(const float* x, int n, float top, float inverse, float* y);
  // Indices of the values that are at least `least`, in order; returns how many. indices: [n].
  int (*at_least)(const float* x, int n, float least, int32_t* indices);
};

const SampleKernels* GenericSample();
#if defined(__x86_64__)
const SampleKernels* Avx2Sample();
const SampleKernels* Avx512Sample();
#elif defined(__aarch64__)
const SampleKernels* NeonSample();
#endif

}  // namespace margay
