// Latent attention in portable C++: every processor can run it.
#include "kernels/vec/vec_generic.h"
// The vector type comes first.
#include "kernels/attention/attention_body.h"

namespace margay {

const AttentionKernels* GenericAttention() { return &kAttentionTable; }

}  // namespace margay
