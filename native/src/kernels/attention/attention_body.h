// Latent attention over pages; included after a vec_*.h.
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/vec/vec_math.h"

namespace margay {
namespace {

// Scores of Q queries with S tokens. A score is one vector sum in the order of the row, then one horizontal sum.
template <int Q, int S>
inline void ScoreBlock(const AttentionTile& t, int query, const uint16_t* kv, int token, float* scores) {
  const int width = t.latent + t.rope;
  const float* q = t.q + query * t.q_stride;
  const uint16_t* k = kv + static_cast<int64_t>(token) * width;
  Vec::Reg sum[Q][S];
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) sum[i][s] = Vec::Zero();
  }
  const auto step = [&](int d, int left) __attribute__((always_inline)) {
    Vec::Reg key[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      const uint16_t* at = k + static_cast<int64_t>(s) * width + d;
      key[s] = left >= kW ? Vec::LoadBf16(at) : Vec::LoadBf16Some(at, left);
    }
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      const Vec::Reg part = LoadUpTo(q + i * t.q_stride + d, left);
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) sum[i][s] = Vec::Fma(part, key[s], sum[i][s]);
    }
  };
  int d = 0;
  for (; d + kW <= width; d += kW) step(d, kW);
  if (d < width) step(d, width - d);
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) scores[(query + i) * kTileTokens + token + s] = Vec::Sum(sum[i][s]);
  }
}

template <int Q>
inline void ScoreRows(const AttentionTile& t, int query, const uint16_t* kv, int tokens, float* scores) {
  int token = 0;
  for (; token + Vec::kTokens <= tokens; token += Vec::kTokens) ScoreBlock<Q, Vec::kTokens>(t, query, kv, token, scores);
  for (; token < tokens; ++token) ScoreBlock<Q, 1>(t, query, kv, token, scores);
}

// Scores become weights relative to the running maximum; returns the factor for what was summed up before.
inline float UpdateSoftmax(float* scores, int seen, float* top, float* sum) {
  float highest = *top;
  for (int s = 0; s < seen; ++s) highest = scores[s] > highest ? scores[s] : highest;
  float keep[Vec::kWidth];
  Vec::Store(keep, Exp2(Vec::Set(*top - highest)));
  const float factor = *sum == 0 ? 0 : keep[0];
  for (int s = seen; s < kTileTokens; ++s) scores[s] = 0;
  Vec::Reg total = Vec::Zero();
  for (int s = 0; s < kTileTokens; s += kW) {
    Vec::Reg e = Exp2(Vec::Sub(Vec::Load(scores + s), Vec::Set(highest)));
    Vec::Store(scores + s, e);
    if (s + kW > seen) {
      for (int i = s < seen ? seen : s; i < s + kW; ++i) scores[i] = 0;
      e = Vec::Load(scores + s);
    }
    total = Vec::Add(total, e);
  }
  *top = highest;
  *sum = *sum * factor + Vec::Sum(total);
  return factor;
}

// out = out * factor + weights * values, for Q queries and V vectors of latent values.
template <int Q, int V>
inline void ValueBlock(const AttentionTile& t, int query, const uint16_t* kv, int tokens, const float* weights,
                       const float* factors, int first, int last_left) {
  const int width = t.latent + t.rope;
  Vec::Reg sum[Q][V];
  const auto left = [&](int v) { return v == V - 1 ? last_left : kW; };
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    const Vec::Reg factor = Vec::Set(factors[query + i]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      sum[i][v] = Vec::Mul(LoadUpTo(t.out + (query + i) * t.out_stride + first + v * kW, left(v)), factor);
    }
  }
  for (int s = 0; s < tokens; ++s) {
    const uint16_t* at = kv + static_cast<int64_t>(s) * width + first;
    Vec::Reg value[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) value[v] = left(v) >= kW ? Vec::LoadBf16(at + v * kW) : Vec::LoadBf16Some(at + v * kW, left(v));
#pragma GCC unroll 4
    for (int i = 0; i < Q; ++i) {
      const Vec::Reg weight = Vec::Set(weights[(query + i) * kTileTokens + s]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[i][v] = Vec::Fma(weight, value[v], sum[i][v]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) StoreUpTo(t.out + (query + i) * t.out_stride + first + v * kW, sum[i][v], left(v));
  }
}

template <int Q>
inline void ValueRows(const AttentionTile& t, int query, const uint16_t* kv, int tokens, const float* weights,
                      const float* factors) {
  constexpr int kBlock = Vec::kValues * kW;
  int first = 0;
  for (; first + kBlock <= t.latent; first += kBlock) {
    ValueBlock<Q, Vec::kValues>(t, query, kv, tokens, weights, factors, first, kW);
  }
  for (; first < t.latent; first += kW) {
    const int left = t.latent - first;
    ValueBlock<Q, 1>(t, query, kv, tokens, weights, factors, first, left < kW ? left : kW);
  }
}

void Attention(const AttentionTile* tile) {
  const AttentionTile& t = *tile;
  float* scores = t.scratch;
  float* top = scores + kAttentionQueries * kTileTokens;
  float* sum = top + kAttentionQueries;
  float factors[kAttentionQueries];
  for (int i = 0; i < t.queries; ++i) {
    top[i] = -3.0e38F;
    sum[i] = 0;
    for (int d = 0; d < t.latent; ++d) t.out[i * t.out_stride + d] = 0;
  }
  const int end = t.visible[t.queries - 1];
  int active = 0;  // queries before it see nothing of this page
  for (int first = 0; first < end; first += kTileTokens) {
    while (t.visible[active] <= first) ++active;
    const int tokens = end - first < kTileTokens ? end - first : kTileTokens;
    const auto* kv = reinterpret_cast<const uint16_t*>(t.pages + t.block_table[first / kTileTokens] * t.page_bytes);
    int query = active;
    for (; query + Vec::kQueries <= t.queries; query += Vec::kQueries) ScoreRows<Vec::kQueries>(t, query, kv, tokens, scores);
    for (; query < t.queries; ++query) ScoreRows<1>(t, query, kv, tokens, scores);
    for (query = active; query < t.queries; ++query) {
      const int seen = t.visible[query] - first;
      factors[query] = UpdateSoftmax(scores + query * kTileTokens, seen < tokens ? seen : tokens, top + query, sum + query);
    }
    query = active;
    for (; query + Vec::kQueries <= t.queries; query += Vec::kQueries) ValueRows<Vec::kQueries>(t, query, kv, tokens, scores, factors);
    for (; query < t.queries; ++query) ValueRows<1>(t, query, kv, tokens, scores, factors);
  }
  for (int i = 0; i < t.queries; ++i) {
    const Vec::Reg inverse = Vec::Set(1.0F / sum[i]);
    float* out = t.out + i * t.out_stride;
    for (int d = 0; d < t.latent; d += kW) StoreUpTo(out + d, Vec::Mul(LoadUpTo(out + d, t.latent - d), inverse), t.latent - d);
  }
}

}  // namespace
}  // namespace margay
