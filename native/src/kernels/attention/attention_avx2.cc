// Latent attention for AVX2, FMA and F16C.
#if defined(__AVX2__)
#include "kernels/vec/vec_avx2.h"
// The vector type comes first.
#include "kernels/attention/attention_body.h"

namespace margay {

const AttentionKernels* Avx2Attention() { return &kAttentionTable; }

}  // namespace margay
#endif
