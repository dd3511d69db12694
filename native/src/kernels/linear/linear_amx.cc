// Matrix products of bf16 weights on the tiles of AMX. The process must have been granted the tile state (tile_state.h).
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#include "kernels/vec/tile_amx.h"
// The tiles come first.
#include "kernels/linear/amx_body.h"

namespace margay {

const LinearKernel* AmxLinear() { return &kTileKernel; }

}  // namespace margay
#endif
