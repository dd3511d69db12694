// Products with weights that are unpacked first: some inputs of some panels become floats in the first cache, and all
// strips that run together take them from there. To unpack costs as much as some rows to multiply, and a vector of
// unpacked weights leaves room for more rows and panels in registers than one that has yet to be made. Every output is
// summed in the same order as by Block (linear_body.h, which includes this file): to the bit the same.
#pragma once

#include "kernels/linear/linear.h"
#include "kernels/linear/stream.h"

namespace margay {
namespace {

// Inputs at a time. For fp8 those of a scale.
template <WeightFormat kFormat>
constexpr int kChunk = kFormat == WeightFormat::kFp8 ? kScaleBlock : 64;

// How far ahead memory is read, in bytes of a panel: what is multiplied by many rows waits long for its turn.
constexpr int kFarAhead = 16384;

// Inputs between two looks at what is to be fetched.
constexpr int kStep = 4;

// Spreads fetches from memory evenly over the arithmetic of a chunk: `panels` streams, a line of each at a time.
class Fetches {
 public:
  Fetches(const uint8_t* from, int64_t panel_bytes, int lines, int steps) : at_(from), panel_bytes_(panel_bytes), lines_(lines), steps_(steps) {}

  template <int P>
  __attribute__((always_inline)) void Step() {
    for (due_ += lines_; due_ >= steps_; due_ -= steps_, at_ += 64) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) __builtin_prefetch(at_ + p * panel_bytes_, 0, 2);
    }
  }

 private:
  const uint8_t* at_;
  int64_t panel_bytes_;
  int lines_;
  int steps_;
  int due_ = 0;
};

template <WeightFormat kFormat, int P>
class Unpacked {
  using Reg = Vec::Reg;
  using W = Weights<kFormat>;
  static constexpr int kVecs = P * kPanelVecs;
  static constexpr int kWidth = P * kPanel;

 public:
  static void Run(const LinearStrip* strips, int count, int panel) {
    const LinearStrip& t = strips[0];
    alignas(64) float weights[kChunk<kFormat> * kWidth];
    alignas(64) float totals[kStripsTogether][LinearShape::kRows * kWidth];
    const int in = (t.in + 3) / 4 * 4;
    for (int i = 0; i < count; ++i) {
      for (int o = 0; o < strips[i].rows * kWidth; ++o) totals[i][o] = 0;
    }
    for (int first = 0; first < in; first += kChunk<kFormat>) {
      const int inputs = first + kChunk<kFormat> < in ? kChunk<kFormat> : in - first;
      Fetches fetches = FetchesFor(t, panel, first, inputs, count);
      AddRows<true>(t, panel, first, inputs, weights, &fetches, totals[0]);
      for (int i = 1; i < count; ++i) AddRows<false>(strips[i], panel, first, inputs, weights, &fetches, totals[i]);
    }
    for (int i = 0; i < count; ++i) Put(strips[i], panel, totals[i]);
  }

 private:
  // Bytes of a panel's inputs [0, k).
  static int64_t Bytes(int k) { return int64_t{k} / 2 * W::kPairBytes; }

  // The next kStep inputs as floats, [inputs][P][16]; `stored` of them are there, the others become zeros.
  __attribute__((always_inline)) static void Unpack(const uint8_t* at, int64_t panel_bytes, int stored, float* to) {
#pragma GCC unroll 2
    for (int k = 0; k < kStep; k += 2) {
      const uint8_t* line = at + k / (2 * W::kPairs) * W::kPairs * W::kPairBytes;
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) {
        Reg even = Vec::Zero();
        Reg odd = Vec::Zero();
        if (k < stored) W::Load(line + v / kPanelVecs * panel_bytes, k / 2 % W::kPairs, v % kPanelVecs * Vec::kWidth, &even, &odd);
        Vec::Store(to + k * kWidth + v * Vec::kWidth, even);
        Vec::Store(to + (k + 1) * kWidth + v * Vec::kWidth, odd);
      }
    }
  }

  // Beyond the end of the panels the streams go on with the next panels.
  static Fetches FetchesFor(const LinearStrip& t, int panel, int first, int inputs, int count) {
    const bool within = Bytes(first + inputs) + kFarAhead <= t.panel_bytes;
    const uint8_t* from = t.w + panel * t.panel_bytes + Bytes(first) + kFarAhead + (within ? 0 : (P - 1) * t.panel_bytes);
    return {from, t.panel_bytes, static_cast<int>((Bytes(inputs) + 63) / 64), count * (inputs / kStep)};
  }

  template <bool kFirst, int R = LinearShape::kRows>
  static void AddRows(const LinearStrip& t, int panel, int first, int inputs, float* w, Fetches* fetches, float* total) {
    if (t.rows == R) return Add<kFirst, R>(t, panel, first, inputs, w, fetches, total);
    if constexpr (R > 1) AddRows<kFirst, R - 1>(t, panel, first, inputs, w, fetches, total);
  }

  // total[r] += sum over `inputs` of x[.][r] * w[.], for fp8 times the scale. total: [R][P][16]; w: [inputs][P][16], made
  // on the way by the first of the strips.
  template <bool kFirst, int R>
  static void Add(const LinearStrip& t, int panel, int first, int inputs, float* w, Fetches* fetches, float* total) {
    constexpr bool kScaled = kFormat == WeightFormat::kFp8;
    const float* x = static_cast<const float*>(t.x) + int64_t{first} * R;
    const uint8_t* stored = t.w + panel * t.panel_bytes + Bytes(first);
    Fetches own = *fetches;
    Reg sum[R][kVecs];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) sum[r][v] = kScaled ? Vec::Zero() : Vec::Load(total + r * kWidth + v * Vec::kWidth);
    }
#pragma GCC unroll 1
    for (int k = 0; k < inputs; k += kStep) {
      own.Step<P>();
      if constexpr (kFirst) {
        constexpr int64_t kStepBytes = kStep / 2 * W::kPairBytes;
        Unpack(stored, t.panel_bytes, t.in - first - k, w);
        stored += kStepBytes;
      }
#pragma GCC unroll 4
      for (int i = 0; R >= 4 && i < kStep * R; i += 16) __builtin_prefetch(x + kAheadX + i, 0, 3);
#pragma GCC unroll 4
      for (int i = 0; i < kStep; ++i, w += kWidth, x += R) {
        Reg weights[kVecs];
#pragma GCC unroll 16
        for (int v = 0; v < kVecs; ++v) weights[v] = Vec::Load(w + v * Vec::kWidth);
        Block<R, P, kFormat>::Multiply(x, weights, sum);
      }
    }
    *fetches = own;
    Reg scales[P];
    if constexpr (kScaled) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) scales[p] = Vec::Set(ScaleOf(t, panel + p, first));
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) {
        float* at = total + r * kWidth + v * Vec::kWidth;
        if constexpr (kScaled) sum[r][v] = Vec::Fma(sum[r][v], scales[v / kPanelVecs], Vec::Load(at));
        Vec::Store(at, sum[r][v]);
      }
    }
  }

  static float ScaleOf(const LinearStrip& t, int panel, int first) {
    const int blocks = (t.in + kScaleBlock - 1) / kScaleBlock;
    return t.scales[(t.first_panel + panel) * kPanel / kScaleBlock * blocks + first / kScaleBlock] * Vec::kFp8Factor;
  }

  static void Put(const LinearStrip& t, int panel, const float* total) {
    const int left = t.outputs - panel * kPanel < kWidth ? t.outputs - panel * kPanel : kWidth;
    for (int r = 0; r < t.rows; ++r) {
      float* y = t.y + r * t.y_stride + panel * kPanel;
      for (int o = 0; o < left; ++o) y[o] = total[r * kWidth + o];
    }
  }
};

template <WeightFormat kFormat, int P>
void RunUnpacked(const LinearStrip* strips, int count, int panel) {
  for (; panel + P <= strips[0].panels; panel += P) Unpacked<kFormat, P>::Run(strips, count, panel);
  if constexpr (P > 1) {
    if (panel < strips[0].panels) RunUnpacked<kFormat, P - 1>(strips, count, panel);
  }
}

template <WeightFormat kFormat>
void MultiplyUnpacked(const LinearStrip* strips, int count) { RunUnpacked<kFormat, LinearShape::kUnpacked>(strips, count, 0); }

}  // namespace
}  // namespace margay
