// Rows of a stored matrix become a panel (panel_layout.h). Panels are written around the caches where the machine can:
// nobody reads them soon, and a line that is written whole need not be fetched first.
#pragma once

#include <cstddef>

namespace margay {

// [count][words] of four bytes to [words][16]; count <= 16, `panel` aligned to 64 bytes. Lanes from `count` on are left
// as they are.
void InterleaveWords(const std::byte* rows, size_t count, size_t words, std::byte* panel);

// [count][codes] to the layout of kFp8, likewise; codes up to a multiple of four become zeros.
void InterleaveFp8(const std::byte* rows, size_t count, size_t codes, std::byte* panel);

}  // namespace margay
