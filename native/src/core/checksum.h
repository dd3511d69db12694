// A fast 64-bit checksum against damage and torn copies, not against forgers. Every change within eight aligned bytes
// changes the result; anything else goes unseen with a probability of about 2^-64. The same on every machine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace margay {

uint64_t Checksum(const void* data, size_t bytes);

// Copies and returns the checksum of what was stored, in one pass: of a source that changes meanwhile too. Large copies
// go around the caches: the destination is not read soon.
uint64_t CopyWithChecksum(void* to, const void* from, size_t bytes);

}  // namespace margay
