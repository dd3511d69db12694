// The tiles of AMX (linear/amx_body.h) in plain C++: shows that code over tiles computes what it should on machines
// without them.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/number_formats.h"

namespace margay {
namespace {

// Per thread, as registers are. Products of tiles that were not configured, or lines beyond those that were, are zeros.
struct Tiles {
  static inline thread_local uint8_t data[8][16][64];
  static inline thread_local int lines[8];

  static void Configure(int rows) {
    std::memset(data, 0, sizeof(data));
    for (int tile = 0; tile < 8; ++tile) lines[tile] = tile < 7 ? rows : 16;
  }
  static void Release() { std::memset(lines, 0, sizeof(lines)); }
  template <int kTile>
  static void Zero() {
    std::memset(data[kTile], 0, sizeof(data[kTile]));
  }
  template <int kTile>
  static void Load(const void* from, int64_t distance) {
    for (int line = 0; line < lines[kTile]; ++line) std::memcpy(data[kTile][line], static_cast<const uint8_t*>(from) + line * distance, 64);
  }
  template <int kTile>
  static void Store(void* to, int64_t distance) {
    for (int line = 0; line < lines[kTile]; ++line) std::memcpy(static_cast<uint8_t*>(to) + line * distance, data[kTile][line], 64);
  }
  template <int kSum, int kA, int kB>
  static void AddProducts() {
    for (int m = 0; m < lines[kSum]; ++m) {
      for (int k = 0; k < lines[kB]; ++k) {
        for (int n = 0; n < 16; ++n) {
          float sum = 0;
          std::memcpy(&sum, &data[kSum][m][4 * n], 4);
          for (int i = 0; i < 2; ++i) sum += Value(data[kA][m], 2 * k + i) * Value(data[kB][k], 2 * n + i);
          std::memcpy(&data[kSum][m][4 * n], &sum, 4);
        }
      }
    }
  }

 private:
  static float Value(const uint8_t* line, int index) {
    uint16_t bits = 0;
    std::memcpy(&bits, line + 2 * index, 2);
    return Bf16ToFloat(bits);
  }
};

}  // namespace
}  // namespace margay
