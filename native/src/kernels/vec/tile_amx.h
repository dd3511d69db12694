// The tiles of AMX, as linear/amx_body.h describes them. The numbers of tiles are operands here: the compiler's intrinsics
// spell them as text, which the parameter of a template is not.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace margay {
namespace {

struct Tiles {
  static void Configure(int rows) {
    struct alignas(64) Palette {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t line_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t lines[16] = {};
    } palette;
    for (int tile = 0; tile < 7; ++tile) palette.lines[tile] = static_cast<uint8_t>(rows);
    palette.lines[7] = 16;
    _tile_loadconfig(&palette);
  }
  static void Release() { _tile_release(); }
  template <int kTile>
  static void Zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  static void Load(const void* from, int64_t distance) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(distance), "i"(kTile) : "memory");
  }
  template <int kTile>
  static void Store(void* to, int64_t distance) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(distance), "i"(kTile) : "memory");
  }
  template <int kSum, int kA, int kB>
  static void AddProducts() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
  }
};

}  // namespace
}  // namespace margay
