// A fast 64-bit checksum against damage and torn copies, not against forgers. Every single changed bit within eight
// aligned bytes changes the result; anything else goes unseen with a probability of about 2^-64.
#pragma once

#include <cstddef>
#include <cstdint>

namespace margay {

uint64_t Checksum(const void* data, size_t bytes);

}  // namespace margay
