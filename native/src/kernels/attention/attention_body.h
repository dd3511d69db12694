// Latent attention over pages; included after a vec_*.h.
#pragma once

#include "kernels/attention/attention_page.h"
#include "kernels/vec/vec_transpose.h"

namespace margay {
namespace {

constexpr int Filled(int n) { return (n + kW - 1) / kW * kW; }

// [width][lanes] of the rows queries[0], ... of q, or of the first ones; lanes beyond the queries are zero.
void PackQueries(const float* q, int64_t q_stride, const int32_t* queries, int count, int lanes, int width, float* packed) {
  const auto row = [&](int i) { return q + (queries == nullptr ? i : queries[i]) * q_stride; };
  Transpose(row, count, lanes, width, lanes, packed);
}

void UnpackPage(const uint16_t* page, int tokens, int width, float* keys, int64_t stride) {
  for (int s = 0; s < tokens; ++s, page += width, keys += stride) {
    for (int d = 0; d < width; d += kW) {
      Vec::Store(keys + d, width - d >= kW ? Vec::LoadBf16(page + d) : Vec::LoadBf16Some(page + d, width - d));
    }
  }
}

// Where the parts of a tile's scratch begin.
struct Scratch {
  float *keys, *scores, *top, *sum, *factors, *q;
  Scratch(float* base, int64_t key_stride)
      : keys(base),
        scores(keys + (kTileTokens + 16) * key_stride),
        top(scores + (kTileTokens + 16) * kBlockLanes),
        sum(top + kAttentionQueries),
        factors(sum + kAttentionQueries),
        q(factors + kAttentionQueries) {}
};

// How much of a page the lanes see; lanes beyond the queries see all of it. Returns the least.
int CountSeen(const AttentionTile& t, int first_query, int count, int lanes, int first_token, int32_t* seen) {
  int least = kTileTokens;
  for (int i = 0; i < lanes; ++i) {
    const int all = i < count ? t.visible[t.queries[first_query + i]] - first_token : kTileTokens;
    seen[i] = all < 0 ? 0 : all;
    least = seen[i] < least ? seen[i] : least;
  }
  return least;
}

void Attend(const AttentionTile* tile) {
  const AttentionTile& t = *tile;
  const int width = t.latent + t.rope;
  const int stride = Filled(width);
  const Scratch scratch(t.scratch, stride);
  for (int i = 0; i < Filled(t.count); ++i) {
    scratch.top[i] = kNothing;
    scratch.sum[i] = 0;
  }
  const auto count_at = [&](int b) { return t.count - b < kBlockLanes ? t.count - b : kBlockLanes; };
  for (int b = 0; b < t.count; b += kBlockLanes) {
    PackQueries(t.q, t.q_stride, t.queries + b, count_at(b), Filled(count_at(b)), width, scratch.q + b * width);
  }
  int32_t seen[kBlockLanes];
  for (int first = t.first; first < t.end; first += kTileTokens) {
    const int tokens = t.end - first < kTileTokens ? t.end - first : kTileTokens;
    const int32_t* block = t.block_table + first / kTileTokens;
    UnpackPage(reinterpret_cast<const uint16_t*>(t.pages + block[0] * t.page_bytes), tokens, width, scratch.keys, stride);
    Ahead ahead{nullptr, nullptr};
    if (first + kTileTokens < t.end) ahead = {t.pages + block[1] * t.page_bytes, t.pages + (block[1] + 1) * t.page_bytes};
    const KeyRows rows{scratch.keys, stride, width, scratch.keys, stride, t.latent, tokens};
    for (int b = 0; b < t.count; b += kBlockLanes) {
      const int least = CountSeen(t, b, count_at(b), Filled(count_at(b)), first, seen);
      const QueryBlock queries{scratch.q + b * width, count_at(b), seen, least, scratch.top + b, scratch.sum + b,
                               scratch.factors + b, scratch.scores, t.out + b * t.out_stride, t.out_stride,
                               first == t.first};
      AttendRows(queries, rows, &ahead);
    }
  }
  for (int i = 0; i < t.count; ++i) {
    t.top[i] = scratch.top[i];
    t.sum[i] = scratch.sum[i];
  }
}

void Normalise(const AttentionSum* of, int latent) {
  const Vec::Reg inverse = Vec::Set(1.0F / *of->sum);
  for (int d = 0; d < latent; d += kW) StoreUpTo(of->out + d, Vec::Mul(LoadUpTo(of->out + d, latent - d), inverse), latent - d);
}

// Rows are lanes; a block of them goes through all pages before the next one.
void AttendExpanded(const ExpandedTile* tile) {
  const ExpandedTile& t = *tile;
  const int width = t.rope + t.nope;
  float* top = t.scratch;
  float* sum = top + kExpandedRows;
  float* factors = sum + kExpandedRows;
  float* scores = factors + kExpandedRows;
  float* q = scores + (kTileTokens + 16) * kBlockLanes;
  int32_t seen[kBlockLanes];
  Ahead nothing{nullptr, nullptr};
  for (int b = 0; b < t.rows; b += kBlockLanes) {
    const int count = t.rows - b < kBlockLanes ? t.rows - b : kBlockLanes;
    const int lanes = Filled(count);
    if (t.first == 0) {
      PackQueries(t.q + b * t.q_stride + t.nope, t.q_stride, nullptr, count, lanes, t.rope, q + b * width);
      PackQueries(t.q + b * t.q_stride, t.q_stride, nullptr, count, lanes, t.nope, q + b * width + t.rope * lanes);
      for (int i = b; i < b + lanes; ++i) {
        top[i] = kNothing;
        sum[i] = 0;
      }
    }
    const int all = t.position + b + count;  // tokens that the last row sees
    for (int first = t.first; first < t.end && first < all; first += kTileTokens) {
      const int end = t.end < all ? t.end : all;
      const int tokens = end - first < kTileTokens ? end - first : kTileTokens;
      for (int i = 0; i < lanes; ++i) {
        const int visible = i < count ? t.position + b + i + 1 - first : kTileTokens;
        seen[i] = visible < 0 ? 0 : visible;
      }
      const float* kv = t.kv + (first - t.first) * t.kv_stride;
      const KeyRows rows{kv, t.kv_stride, width, kv + width, t.kv_stride, t.v_head, tokens};
      const QueryBlock queries{q + b * width, count, seen, seen[0], top + b, sum + b, factors + b, scores, t.out + b * t.out_stride, t.out_stride, first == 0};
      AttendRows(queries, rows, &nothing);
    }
    for (int i = b; t.last && i < b + count; ++i) {
      const AttentionSum of{t.out + i * t.out_stride, top + i, sum + i};
      Normalise(&of, t.v_head);
    }
  }
}

float Exp2Of(float x) {
  alignas(64) float lanes[kW];
  Vec::Store(lanes, Exp2(Vec::Set(x)));
  return lanes[0];
}

void Merge(const AttentionSum* into, const AttentionSum* part, int latent) {
  if (*part->sum == 0) return;
  const bool empty = *into->sum == 0;
  const float top = empty || *part->top > *into->top ? *part->top : *into->top;
  const float keep = empty ? 0 : Exp2Of(*into->top - top);
  const float take = Exp2Of(*part->top - top);
  const Vec::Reg keeps = Vec::Set(keep);
  const Vec::Reg takes = Vec::Set(take);
  for (int d = 0; d < latent; d += kW) {
    const int left = latent - d;
    const Vec::Reg taken = Vec::Mul(LoadUpTo(part->out + d, left), takes);
    StoreUpTo(into->out + d, empty ? taken : Vec::Fma(LoadUpTo(into->out + d, left), keeps, taken), left);
  }
  *into->sum = empty ? *part->sum * take : *into->sum * keep + *part->sum * take;
  *into->top = top;
}

void Rotate(const float* x, const float* cosine, const float* sine, int n, float* y) {
  for (int i = 0; i < n; i += kW) {
    const Vec::Reg v = LoadUpTo(x + i, n - i);
    const Vec::Reg turned = Vec::Mul(Vec::SwapPairs(v), LoadUpTo(sine + i, n - i));
    StoreUpTo(y + i, Vec::Fma(v, LoadUpTo(cosine + i, n - i), turned), n - i);
  }
}

constexpr AttentionKernels kAttentionTable = {Attend, AttendExpanded, Merge, Normalise, Rotate};

}  // namespace
}  // namespace margay
