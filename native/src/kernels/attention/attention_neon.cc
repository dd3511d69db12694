// Latent attention for 64-bit ARM.
#if defined(__aarch64__)
#include "kernels/vec/vec_neon.h"
// The vector type comes first.
#include "kernels/attention/attention_body.h"

namespace margay {

const AttentionKernels* NeonAttention() { return &kAttentionTable; }

}  // namespace margay
#endif
