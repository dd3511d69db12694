// Latent attention on a unit that multiplies tiles of bf16; included after vec_*.h, tile_*.h and attention_body.h.
//
// Queries and weights are cut into two bf16 parts each, so that their products lose next to nothing against fp32; the
// pages are bf16 as they are. Of a page, rows are the left side of the scores as they lie there, and pairs of rows,
// interleaved, the right side of the weighted sums.
#pragma once

#include "kernels/attention/attention_body.h"

namespace margay {
namespace {

constexpr int kTileSide = 16;
constexpr int kTileDepth = 32;        // bf16 values of a tile's row
constexpr int kTileValues = 16 * 32;  // bf16 values of a tile
constexpr int kSplit = 2;             // parts of a query or a weight
constexpr int kTileAhead = 16;        // cache lines of the next page asked for per step of the scores

constexpr int WholeTiles(int n, int side) { return (n + side - 1) / side; }

// x = high + low up to 2^-16 of it, both bf16.
inline void SplitValue(float x, uint16_t* high, uint16_t* low) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  *high = static_cast<uint16_t>(bits >> 16);
  *low = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, x - __builtin_bit_cast(float, bits & 0xffff0000U)) >> 16);
}

// Of one tile's scratch; sizes in AttentionScratch.
struct TileScratch {
  uint16_t* q;        // per block of 64 lanes: [part][width / 32][lanes / 16] tiles of [16 pairs][16 lanes][2]
  uint16_t* keys;     // [64][width, filled up to 32], where the page's rows cannot be tiles as they are
  uint16_t* values;   // [2][latent / 16] tiles of [16 pairs of tokens][16 values][2]
  uint16_t* weights;  // [part][lanes / 16][2] tiles of [16 lanes][32 tokens]
  float* scores;      // [64][lanes]
  float* out;         // per block: [lanes / 16][latent / 16] tiles of [16 lanes][16 values]
  float *top, *sum, *factors;
  TileScratch(float* base, int width, int latent)
      : top(base), sum(top + kAttentionQueries), factors(sum + kAttentionQueries) {
    scores = factors + kAttentionQueries;
    out = scores + (kTileTokens + 16) * 64;
    float* at = out + kAttentionQueries * WholeTiles(latent, kTileSide) * kTileSide;
    const int padded = WholeTiles(width, kTileDepth) * kTileDepth;
    q = reinterpret_cast<uint16_t*>(at);
    keys = q + kAttentionQueries * padded * kSplit;
    values = keys + kTileTokens * padded;
    weights = values + kTileTokens * WholeTiles(latent, kTileSide) * kTileSide;
  }
};

// packed: [width][lanes] floats, lanes a multiple of 16.
void SplitQueries(const float* packed, int width, int lanes, uint16_t* q) {
  const int depth = WholeTiles(width, kTileDepth);
  const int groups = lanes / kTileSide;
  for (int k = 0; k < depth * kTileDepth; ++k) {
    for (int lane = 0; lane < lanes; ++lane) {
      const int tile = k / kTileDepth * groups + lane / kTileSide;
      uint16_t* to = q + tile * kTileValues + k % kTileDepth / 2 * kTileDepth + lane % kTileSide * 2 + k % 2;
      SplitValue(k < width ? packed[k * lanes + lane] : 0.0F, to, to + depth * groups * kTileValues);
    }
  }
}

// Rows of a page that are not whole tiles, filled up with zeros.
void CopyRows(const uint16_t* page, int tokens, int width, uint16_t* keys) {
  const int stride = WholeTiles(width, kTileDepth) * kTileDepth;
  for (int t = 0; t < kTileTokens; ++t) {
    for (int d = 0; d < stride; ++d) keys[t * stride + d] = t < tokens && d < width ? page[t * width + d] : 0;
  }
}

// Pairs of tokens side by side; tokens that are not there are zero, since their rows may hold anything.
void InterleaveValues(const uint16_t* page, int tokens, int width, int latent, uint16_t* values) {
  const int columns = WholeTiles(latent, kTileSide);
  for (int t = 0; t < kTileTokens; t += 2) {
    uint16_t* to = values + t / kTileDepth * columns * kTileValues + t % kTileDepth / 2 * kTileDepth;
    for (int c = 0; c < columns; ++c, to += kTileValues) {
      for (int i = 0; i < kTileSide; i += kW) {
        const int d = c * kTileSide + i;
        const auto row = [&](int token) {
          if (token >= tokens || d >= latent) return Vec::Zero();
          const uint16_t* at = page + token * width + d;
          return latent - d >= kW ? Vec::LoadBf16(at) : Vec::LoadBf16Some(at, latent - d);
        };
        Vec::StorePairs(row(t), row(t + 1), to + 2 * i);
      }
    }
  }
}

// [token][lane] floats to two parts of [lane][token].
void SplitWeights(const float* weights, int tokens, int lanes, uint16_t* to) {
  const int groups = lanes / kTileSide;
  for (int lane = 0; lane < lanes; lane += kW) {
    for (int t = 0; t < kTileTokens; t += kW) {
      Vec::Reg square[kW];
      for (int i = 0; i < kW; ++i) square[i] = t + i < tokens ? Vec::Load(weights + (t + i) * lanes + lane) : Vec::Zero();
      Vec::Transpose(square);
      for (int i = 0; i < kW; ++i) {
        const int row = lane + i;
        uint16_t* at = to + (row / kTileSide * 2 + t / kTileDepth) * kTileValues + row % kTileSide * kTileDepth + t % kTileDepth;
        Vec::StoreHigh(square[i], at);
        Vec::StoreHigh(Vec::Sub(square[i], Vec::High(square[i])), at + groups * 2 * kTileValues);
      }
    }
  }
}

// 32 tokens by G groups of 16 lanes.
template <int G>
void TileScores(const uint16_t* keys, int64_t key_bytes, const uint16_t* q, int depth, int groups,
                float* scores, Ahead* ahead) {
  Tiles::Zero<0>();
  Tiles::Zero<1>();
  Tiles::Zero<2>();
  Tiles::Zero<3>();
  for (int k = 0; k < depth; ++k) {
    Tiles::Load<4>(keys + k * kTileDepth, key_bytes);
    Tiles::Load<5>(keys + k * kTileDepth + kTileSide * key_bytes / 2, key_bytes);
    ahead->Ask(kTileAhead);
    for (int part = 0; part < kSplit; ++part) {
      const uint16_t* right = q + (part * depth + k) * groups * kTileValues;
      Tiles::Load<6>(right, 64);
      if constexpr (G == 2) Tiles::Load<7>(right + kTileValues, 64);
      Tiles::AddProducts<0, 4, 6>();
      if constexpr (G == 2) Tiles::AddProducts<1, 4, 7>();
      Tiles::AddProducts<2, 5, 6>();
      if constexpr (G == 2) Tiles::AddProducts<3, 5, 7>();
    }
  }
  const int64_t row_bytes = int64_t{groups} * kTileSide * 4;
  float* below = scores + kTileSide * groups * kTileSide;
  Tiles::Store<0>(scores, row_bytes);
  if constexpr (G == 2) Tiles::Store<1>(scores + kTileSide, row_bytes);
  Tiles::Store<2>(below, row_bytes);
  if constexpr (G == 2) Tiles::Store<3>(below + kTileSide, row_bytes);
}

// G groups of 16 lanes by C columns of 16 values; `fresh`: what was there does not count.
template <int G, int C>
void TileSums(const uint16_t* weights, int groups, const uint16_t* values, int columns, bool fresh, float* out) {
  constexpr int kFloats = kTileSide * kTileSide;
  float* second = out + columns * kFloats;
  Tiles::Zero<0>();
  Tiles::Zero<1>();
  Tiles::Zero<2>();
  Tiles::Zero<3>();
  if (!fresh) {
    Tiles::Load<0>(out, 64);
    if constexpr (C == 2) Tiles::Load<1>(out + kFloats, 64);
    if constexpr (G == 2) Tiles::Load<2>(second, 64);
    if constexpr (G == 2 && C == 2) Tiles::Load<3>(second + kFloats, 64);
  }
  for (int k = 0; k < kTileTokens / kTileDepth; ++k) {
    Tiles::Load<6>(values + k * columns * kTileValues, 64);
    if constexpr (C == 2) Tiles::Load<7>(values + (k * columns + 1) * kTileValues, 64);
    for (int part = 0; part < kSplit; ++part) {
      const uint16_t* left = weights + (part * groups * 2 + k) * kTileValues;
      Tiles::Load<4>(left, 64);
      if constexpr (G == 2) Tiles::Load<5>(left + 2 * kTileValues, 64);
      Tiles::AddProducts<0, 4, 6>();
      if constexpr (C == 2) Tiles::AddProducts<1, 4, 7>();
      if constexpr (G == 2) Tiles::AddProducts<2, 5, 6>();
      if constexpr (G == 2 && C == 2) Tiles::AddProducts<3, 5, 7>();
    }
  }
  Tiles::Store<0>(out, 64);
  if constexpr (C == 2) Tiles::Store<1>(out + kFloats, 64);
  if constexpr (G == 2) Tiles::Store<2>(second, 64);
  if constexpr (G == 2 && C == 2) Tiles::Store<3>(second + kFloats, 64);
}

template <int G>
void TileSumsOfGroups(const uint16_t* weights, int groups, const uint16_t* values, int columns, bool fresh, float* out) {
  constexpr int kFloats = kTileSide * kTileSide;
  int c = 0;
  for (; c + 2 <= columns; c += 2) TileSums<G, 2>(weights, groups, values + c * kTileValues, columns, fresh, out + c * kFloats);
  if (c < columns) TileSums<G, 1>(weights, groups, values + c * kTileValues, columns, fresh, out + c * kFloats);
}

// Multiplies by a lane's factor, unless all are 1.
void Rescale(const float* factors, int columns, float* out) {
  bool changed = false;
  for (int i = 0; i < kTileSide; ++i) changed = changed || factors[i] != 1;
  if (!changed) return;
  for (int c = 0; c < columns; ++c) {
    for (int i = 0; i < kTileSide; ++i, out += kTileSide) {
      for (int d = 0; d < kTileSide; d += kW) Vec::Store(out + d, Vec::Mul(Vec::Load(out + d), Vec::Set(factors[i])));
    }
  }
}

void UpdateLanes(const QueryBlock& block, int lanes, int tokens) {
  switch (lanes / kW) {
    case 1: return UpdateSoftmax<1>(block, tokens);
    case 2: return UpdateSoftmax<2>(block, tokens);
    case 3: return UpdateSoftmax<3>(block, tokens);
    case 4: return UpdateSoftmax<4>(block, tokens);
    case 8: return UpdateSoftmax<8>(block, tokens);
    case 12: return UpdateSoftmax<12>(block, tokens);
    default: return UpdateSoftmax<16>(block, tokens);
  }
}

void AttendTiles(const AttentionTile* tile) {
  const AttentionTile& t = *tile;
  constexpr int kLanes = 64;  // of a block
  const int width = t.latent + t.rope;
  const int depth = WholeTiles(width, kTileDepth);
  const int columns = WholeTiles(t.latent, kTileSide);
  const TileScratch scratch(t.scratch, width, t.latent);
  const auto count_at = [&](int b) { return t.count - b < kLanes ? t.count - b : kLanes; };
  const auto lanes_at = [&](int b) { return WholeTiles(count_at(b), kTileSide) * kTileSide; };
  Tiles::Configure(kTileSide);
  for (int b = 0; b < t.count; b += kLanes) {
    // The block's sums are not in use yet: its queries are turned there on their way.
    PackQueries(t.q, t.q_stride, t.queries + b, count_at(b), lanes_at(b), width, scratch.out);
    SplitQueries(scratch.out, width, lanes_at(b), scratch.q + b * depth * kTileDepth * kSplit);
  }
  for (int i = 0; i < WholeTiles(t.count, kTileSide) * kTileSide; ++i) {
    scratch.top[i] = kNothing;
    scratch.sum[i] = 0;
  }
  int32_t seen[kLanes];
  for (int first = t.first; first < t.end; first += kTileTokens) {
    const int tokens = t.end - first < kTileTokens ? t.end - first : kTileTokens;
    const bool fresh = first == t.first;
    const auto* page = reinterpret_cast<const uint16_t*>(t.pages + t.block_table[first / kTileTokens] * t.page_bytes);
    const bool whole = width % kTileDepth == 0;
    if (!whole) CopyRows(page, tokens, width, scratch.keys);
    const uint16_t* keys = whole ? page : scratch.keys;
    const int64_t key_bytes = int64_t{depth} * kTileDepth * 2;
    InterleaveValues(page, tokens, width, t.latent, scratch.values);
    Ahead ahead{nullptr, nullptr};
    if (first + kTileTokens < t.end) {
      const uint8_t* next = t.pages + t.block_table[first / kTileTokens + 1] * t.page_bytes;
      ahead = {next, next + t.page_bytes};
    }
    for (int b = 0; b < t.count; b += kLanes) {
      const int lanes = lanes_at(b);
      const int groups = lanes / kTileSide;
      const uint16_t* q = scratch.q + b * depth * kTileDepth * kSplit;
      for (int s = 0; s < kTileTokens; s += 2 * kTileSide) {
        int g = 0;
        for (; g + 2 <= groups; g += 2) {
          TileScores<2>(keys + s * key_bytes / 2, key_bytes, q + g * kTileValues, depth, groups,
                        scratch.scores + s * lanes + g * kTileSide, &ahead);
        }
        if (g < groups) {
          TileScores<1>(keys + s * key_bytes / 2, key_bytes, q + g * kTileValues, depth, groups,
                        scratch.scores + s * lanes + g * kTileSide, &ahead);
        }
      }
      const int least = CountSeen(t, b, count_at(b), lanes, first, seen);
      const QueryBlock block{nullptr, count_at(b), seen, least, scratch.top + b, scratch.sum + b, scratch.factors + b,
                             scratch.scores, nullptr, 0, fresh};
      UpdateLanes(block, lanes, tokens);
      SplitWeights(scratch.scores, tokens, lanes, scratch.weights);
      float* out = scratch.out + b * columns * kTileSide;
      for (int g = 0; g < groups; ++g) {
        if (!fresh) Rescale(scratch.factors + b + g * kTileSide, columns, out + g * columns * kTileSide * kTileSide);
      }
      int g = 0;
      for (; g + 2 <= groups; g += 2) {
        TileSumsOfGroups<2>(scratch.weights + g * 2 * kTileValues, groups, scratch.values, columns, fresh, out + g * columns * kTileSide * kTileSide);
      }
      if (g < groups) {
        TileSumsOfGroups<1>(scratch.weights + g * 2 * kTileValues, groups, scratch.values, columns, fresh, out + g * columns * kTileSide * kTileSide);
      }
    }
  }
  Tiles::Release();
  for (int i = 0; i < t.count; ++i) {
    t.top[i] = scratch.top[i];
    t.sum[i] = scratch.sum[i];
    const float* from = scratch.out + (i / kTileSide * columns * kTileSide + i % kTileSide) * kTileSide;
    for (int d = 0; d < t.latent; ++d) t.out[i * t.out_stride + d] = from[d / kTileSide * kTileSide * kTileSide + d % kTileSide];
  }
}

constexpr AttentionKernels kTileAttentionTable = {AttendTiles, AttendExpanded, Merge, Normalise, Rotate};

}  // namespace
}  // namespace margay
