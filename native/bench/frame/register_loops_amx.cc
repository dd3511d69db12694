#include <immintrin.h>

#include "frame/register_loops.h"

namespace margay::bench {
namespace {

struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Four accumulators, two tiles on either side, as a blocked product has them.
void Begin() {
  const TileShapes shapes;
  _tile_loadconfig(&shapes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

void RunBf16(int64_t passes) {
  Begin();
  for (int64_t i = 0; i < passes; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

void RunInt8(int64_t passes) {
  Begin();
  for (int64_t i = 0; i < passes; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
}

}  // namespace

RegisterLoop Bf16Amx() { return {4 * 16 * 16 * 32 * 2, RunBf16}; }
RegisterLoop Int8Amx() { return {4 * 16 * 16 * 64 * 2, RunInt8}; }

}  // namespace margay::bench
