// Permission to use the tiles of AMX.
#pragma once

namespace margay {

// Asks the kernel, once per process and for all its threads. False: tiles must not be touched.
bool GrantTileState();

}  // namespace margay
