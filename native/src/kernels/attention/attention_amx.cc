// Latent attention on AMX tiles, the rest for AVX-512.
#if defined(__AMX_BF16__)
#include "kernels/vec/vec_avx512.h"
#include "kernels/vec/tile_amx.h"
// The vector type and the tiles come first.
#include "kernels/attention/attention_tiles.h"

namespace margay {

const AttentionKernels* AmxAttention() { return &kTileAttentionTable; }

}  // namespace margay
#endif
