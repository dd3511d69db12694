// How far products look ahead.
//
// What comes next in the streams of weights, one per panel that runs, is fetched twice: early into the second cache, then
// into the first. Memory answers at full speed only when that much is under way, and not every machine prefetches by
// itself.
#pragma once

#include <cstdint>

namespace margay {
namespace {

constexpr int kNear = 512;  // bytes
// What is fetched once, straight into the first cache: where arithmetic takes most of the time that is as early as two
// fetches, and cheaper.
constexpr int Once(int rows) { return rows <= 8 ? 2048 : 4096; }
constexpr int Far(int panels) { return panels >= 8 ? 4096 : 8192; }
constexpr int kAheadX = 256;  // words of activations, which lie in the second cache when they are many

}  // namespace
}  // namespace margay
