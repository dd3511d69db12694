// One page's part of attention in fp32, for up to four vectors of queries; included after a vec_*.h.
//
// Queries are lanes: scores are [token][lane] and no sum crosses lanes. The page is [token][value], which serves the
// scores as scalars and the weighted sums as vectors. Every score is one chain over the values, every output one chain
// over the tokens, whatever the shape of the blocks.
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/vec/vec_math.h"

namespace margay {
namespace {

constexpr int kBlockVecs = 4;
constexpr int kBlockLanes = kBlockVecs * kW;
constexpr int kScoreDepth = 96;  // values of the page at a time: what they need of the queries stays in the L1 cache
constexpr int kAheadLines = 12;  // cache lines of the next page asked for per block of scores
constexpr float kNothing = -3.0e38F;

// Tokens whose scores with V vectors of queries are held in registers.
template <int V>
constexpr int kScoreTokens = V == 3 ? 4 : Vec::kScores / V;

// Queries of one block and what they have summed up so far. Lanes are queries filled up to whole vectors.
struct QueryBlock {
  const float* q;       // [width][lanes]
  int count;
  const int32_t* seen;  // [lanes]: tokens of this page that a lane sees
  int least_seen;
  float* top;           // [lanes]
  float* sum;           // [lanes]
  float* factors;       // [lanes]
  float* scores;        // [tokens][lanes]
  float* out;           // [count, out_stride]
  int64_t out_stride;
  bool fresh;           // nothing is in `out` yet
};

struct KeyRows {
  const float* keys;  // [tokens, key_stride]; kTileTokens rows and 16 more may be read
  int64_t key_stride;
  int key_width;
  const float* values;  // [tokens, value_stride], filled up to whole vectors
  int64_t value_stride;
  int value_width;
  int tokens;
};

// The page that comes next, asked for a little at a time.
struct Ahead {
  const uint8_t* at;
  const uint8_t* end;
  void Ask(int lines) {
    for (int i = 0; i < lines && at < end; ++i, at += 64) __builtin_prefetch(at, 0, 2);
  }
};

template <int T, int V>
inline __attribute__((always_inline)) void ScoreBlock(const float* q, const float* keys, int64_t key_stride, int depth,
                                                      bool fresh, float* scores) {
  constexpr int kLanes = V * kW;
  Vec::Reg sum[T][V];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[t][v] = fresh ? Vec::Zero() : Vec::Load(scores + t * kLanes + v * kW);
  }
  for (int d = 0; d < depth; ++d) {
    Vec::Reg query[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) query[v] = Vec::Load(q + d * kLanes + v * kW);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const Vec::Reg key = Vec::Set(keys[t * key_stride + d]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[t][v] = Vec::Fma(key, query[v], sum[t][v]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) Vec::Store(scores + t * kLanes + v * kW, sum[t][v]);
  }
}

template <int V>
void Scores(const QueryBlock& block, const KeyRows& rows, Ahead* ahead) {
  constexpr int kLanes = V * kW;
  for (int d = 0; d < rows.key_width; d += kScoreDepth) {
    const int depth = rows.key_width - d < kScoreDepth ? rows.key_width - d : kScoreDepth;
    for (int t = 0; t < rows.tokens; t += kScoreTokens<V>) {
      ScoreBlock<kScoreTokens<V>, V>(block.q + d * kLanes, rows.keys + t * rows.key_stride + d, rows.key_stride, depth,
                                     d == 0, block.scores + t * kLanes);
      ahead->Ask(kAheadLines);
    }
  }
}

void FillUnseen(const QueryBlock& block, int lanes, int tokens, float value) {
  for (int lane = 0; lane < lanes; ++lane) {
    for (int t = block.seen[lane]; t < tokens; ++t) block.scores[t * lanes + lane] = value;
  }
}

// Scores become weights relative to the running maximum; factors are for what was summed up before.
template <int V>
void UpdateSoftmax(const QueryBlock& block, int tokens) {
  constexpr int kLanes = V * kW;
  float* scores = block.scores;
  const bool all_seen = block.least_seen >= tokens;
  Vec::Reg top[V];
  Vec::Reg sum[V];
  if (!all_seen) FillUnseen(block, kLanes, tokens, kNothing);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) top[v] = Vec::Load(block.top + v * kW);
  for (int t = 0; t < tokens; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) top[v] = Vec::Max(top[v], Vec::Load(scores + t * kLanes + v * kW));
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    Vec::Store(block.factors + v * kW, Exp2(Vec::Sub(Vec::Load(block.top + v * kW), top[v])));
    Vec::Store(block.top + v * kW, top[v]);
    sum[v] = Vec::Zero();
  }
  for (int t = 0; t < tokens; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* at = scores + t * kLanes + v * kW;
      Vec::Store(at, Exp2(Vec::Sub(Vec::Load(at), top[v])));
    }
  }
  if (!all_seen) FillUnseen(block, kLanes, tokens, 0);
  for (int t = 0; t < tokens; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[v] = Vec::Add(sum[v], Vec::Load(scores + t * kLanes + v * kW));
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    Vec::Store(block.sum + v * kW, Vec::Fma(Vec::Load(block.sum + v * kW), Vec::Load(block.factors + v * kW), sum[v]));
  }
}

// out = out * factor + weights * values, for Q queries and V vectors of values.
template <int Q, int V>
inline __attribute__((always_inline)) void ValueBlock(const QueryBlock& block, int lanes, int query, const KeyRows& rows,
                                                      int d, int last_left) {
  const float* weights = block.scores + query;
  const float* values = rows.values + d;
  float* out = block.out + query * block.out_stride + d;
  Vec::Reg sum[Q][V];
  const auto left = [&](int v) { return v == V - 1 ? last_left : kW; };
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    const Vec::Reg factor = Vec::Set(block.factors[query + i]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      sum[i][v] = block.fresh ? Vec::Zero() : Vec::Mul(LoadUpTo(out + i * block.out_stride + v * kW, left(v)), factor);
    }
  }
  for (int t = 0; t < rows.tokens; ++t) {
    Vec::Reg value[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) value[v] = Vec::Load(values + t * rows.value_stride + v * kW);
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      const Vec::Reg weight = Vec::Set(weights[t * lanes + i]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[i][v] = Vec::Fma(weight, value[v], sum[i][v]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) StoreUpTo(out + i * block.out_stride + v * kW, sum[i][v], left(v));
  }
}

template <int V, int Q>
inline void LastQueries(const QueryBlock& block, int lanes, int query, const KeyRows& rows, int d, int last_left) {
  if (block.count - query == Q) return ValueBlock<Q, V>(block, lanes, query, rows, d, last_left);
  if constexpr (Q > 1) LastQueries<V, Q - 1>(block, lanes, query, rows, d, last_left);
}

template <int V>
inline void ValueColumn(const QueryBlock& block, int lanes, const KeyRows& rows, int d, int last_left) {
  int query = 0;
  for (; query + Vec::kQueries <= block.count; query += Vec::kQueries) {
    ValueBlock<Vec::kQueries, V>(block, lanes, query, rows, d, last_left);
  }
  LastQueries<V, Vec::kQueries - 1>(block, lanes, query, rows, d, last_left);
}

void Values(const QueryBlock& block, int lanes, const KeyRows& rows) {
  int d = 0;
  for (; d + Vec::kValues * kW <= rows.value_width; d += Vec::kValues * kW) {
    ValueColumn<Vec::kValues>(block, lanes, rows, d, kW);
  }
  for (; d < rows.value_width; d += kW) {
    ValueColumn<1>(block, lanes, rows, d, rows.value_width - d < kW ? rows.value_width - d : kW);
  }
}

template <int V>
void AttendVecs(const QueryBlock& block, const KeyRows& rows, Ahead* ahead) {
  Scores<V>(block, rows, ahead);
  UpdateSoftmax<V>(block, rows.tokens);
  Values(block, V * kW, rows);
}

// Adds what the rows contribute to the block's queries.
void AttendRows(const QueryBlock& block, const KeyRows& rows, Ahead* ahead) {
  switch ((block.count + kW - 1) / kW) {
    case 1: return AttendVecs<1>(block, rows, ahead);
    case 2: return AttendVecs<2>(block, rows, ahead);
    case 3: return AttendVecs<3>(block, rows, ahead);
    default: return AttendVecs<4>(block, rows, ahead);
  }
}

}  // namespace
}  // namespace margay
