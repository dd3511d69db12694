// Latent attention for AVX-512 F, BW, VL and DQ.
#if defined(__AVX512F__)
#include "kernels/vec/vec_avx512.h"
// The vector type comes first.
#include "kernels/attention/attention_body.h"

namespace margay {

const AttentionKernels* Avx512Attention() { return &kAttentionTable; }

}  // namespace margay
#endif
