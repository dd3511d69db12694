// The tile kernel (kernels/linear/amx_body.h) over emulated tiles.
#pragma once

#include "kernels/vec/tile_emulated.h"
// The tiles come first.
#include "kernels/linear/amx_body.h"

namespace margay::tests {

inline LinearKernel EmulatedTileLinear() { return kTileKernel; }

}  // namespace margay::tests
