// Matrix products in fp32 over any format of weights; included after a vec_*.h and a definition of LinearShape:
//   kRows         most rows of one strip of several
//   kLoneRows     by format: most rows of a strip that has the weights for itself
//   Panels(rows)  panels that are held in registers together with that many rows
//   kDirectRows   by format: most rows that are multiplied with weights as they are stored, more with unpacked ones; a
//                 strip of more than kRows again as they are stored: to unpack pays for few rows or for several strips
//   kUnpacked     panels that are unpacked together
#pragma once

#include "kernels/linear/linear.h"
#include "kernels/linear/stream.h"
#include "kernels/vec/vec_transpose.h"

namespace margay {
namespace {

constexpr int kPanelVecs = kPanel / Vec::kWidth;

template <WeightFormat kFormat>
struct Weights;

// at: a panel; the inputs k and k + 1 (k even) of kWidth outputs from `lane` on.
template <>
struct Weights<WeightFormat::kBf16> {
  static constexpr int kPairs = 1;      // pairs of inputs in 64 bytes
  static constexpr int kPairBytes = 64;
  static void Load(const uint8_t* at, int, int lane, Vec::Reg* even, Vec::Reg* odd) { Vec::LoadPairs(at + lane * 4, even, odd); }
};

template <>
struct Weights<WeightFormat::kF32> {
  static constexpr int kPairs = 1;
  static constexpr int kPairBytes = 128;
  static void Load(const uint8_t* at, int, int lane, Vec::Reg* even, Vec::Reg* odd) {
    const auto* values = reinterpret_cast<const float*>(at) + lane;
    *even = Vec::Load(values);
    *odd = Vec::Load(values + kPanel);
  }
};

template <>
struct Weights<WeightFormat::kFp8> {
  static constexpr int kPairs = 2;
  static constexpr int kPairBytes = 32;
  static void Load(const uint8_t* at, int pair, int lane, Vec::Reg* even, Vec::Reg* odd) {
    Vec::LoadFp8Pairs(at + lane * 2, pair, even, odd);
  }
};

template <>
struct Weights<WeightFormat::kInt8> {
  static constexpr int kPairs = 2;
  static constexpr int kPairBytes = 32;
  static void Load(const uint8_t* at, int pair, int lane, Vec::Reg* even, Vec::Reg* odd) {
    Vec::LoadInt8Pairs(at + lane * 4, pair, even, odd);
  }
};

// R rows by P panels, held in registers. Every output is one chain of fused multiply-adds in the order of k, whatever R
// and P are; for fp8 one chain per block of inputs, then one chain over the blocks with their scales.
template <int R, int P, WeightFormat kFormat>
class Block {
  using Reg = Vec::Reg;
  using W = Weights<kFormat>;
  static constexpr int kVecs = P * kPanelVecs;
  static constexpr bool kFetchOnce = R * kPanelVecs >= 6;
  static constexpr int kAhead = kFetchOnce ? Once(R) : Far(P);

 public:
  Block(const LinearStrip& strip, int panel) : t_(strip), panel_(panel), x_(static_cast<const float*>(strip.x)), w_(strip.w + panel * strip.panel_bytes) {}

  void Run() const {
    const int in = (t_.in + 2 * W::kPairs - 1) / (2 * W::kPairs) * (2 * W::kPairs);
    // Beyond the end of the panels the streams go on with the next panels.
    const int far_inputs = kAhead / W::kPairBytes * 2;
    const int turn = in > far_inputs ? in - far_inputs : 0;
    const int64_t beyond = kAhead + (P - 1) * t_.panel_bytes;
    if constexpr (kFormat != WeightFormat::kFp8) {
      Reg sum[R][kVecs];
      Clear(sum);
      Accumulate(0, turn, kAhead, sum);
      Accumulate(turn, in, beyond, sum);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < kVecs; ++v) Put(r, v, kFormat == WeightFormat::kInt8 ? Vec::Mul(sum[r][v], ScaleOf(v)) : sum[r][v]);
      }
    } else {
      alignas(64) float total[R][kVecs * Vec::kWidth] = {};
      const int blocks = (t_.in + kScaleBlock - 1) / kScaleBlock;
      const float* scales = t_.scales + (t_.first_panel + panel_) * kPanel / kScaleBlock * blocks;
      for (int block = 0; block < blocks; ++block) {
        const int first = block * kScaleBlock;
        const int end = first + kScaleBlock < in ? first + kScaleBlock : in;
        Reg sum[R][kVecs];
        Clear(sum);
        Accumulate(first, end, end <= turn ? kAhead : beyond, sum);
        Fold(sum, scales, block, blocks, total);
      }
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < kVecs; ++v) Put(r, v, Vec::Load(&total[r][v * Vec::kWidth]));
      }
    }
  }

  __attribute__((always_inline)) static void Clear(Reg (*sum)[kVecs]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) sum[r][v] = Vec::Zero();
    }
  }

  // sum[r] += x[r] * w
  __attribute__((always_inline)) static void Multiply(const float* x, const Reg* w, Reg (*sum)[kVecs]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      if constexpr (kVecs == 1) {
        Vec::AddProduct(&sum[r][0], w[0], x + r);
      } else {
        const Reg factor = Vec::Set(x[r]);
#pragma GCC unroll 16
        for (int v = 0; v < kVecs; ++v) Vec::AddProduct(&sum[r][v], w[v], factor);
      }
    }
  }

 private:
  __attribute__((always_inline)) void Accumulate(int first, int end, int64_t ahead, Reg (*sum)[kVecs]) const {
#pragma GCC unroll 1
    for (int k = first; k < end; k += 2 * W::kPairs) {
      const uint8_t* at = w_ + k / 2 * W::kPairBytes;
      const float* x = x_ + k * R;
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int line = 0; line < W::kPairs * W::kPairBytes; line += 64) {
          if (!kFetchOnce) __builtin_prefetch(at + p * t_.panel_bytes + kNear + line, 0, 3);
          __builtin_prefetch(at + p * t_.panel_bytes + ahead + line, 0, kFetchOnce ? 3 : 2);
        }
      }
      // Activations lie in the second cache when they are many.
#pragma GCC unroll 4
      for (int i = 0; R >= 4 && i < 2 * W::kPairs * R; i += 16) __builtin_prefetch(x + kAheadX + i, 0, 3);
#pragma GCC unroll 2
      for (int pair = 0; pair < W::kPairs; ++pair, x += 2 * R) Pair(at, pair, x, sum);
    }
  }

  // x: [2][R]
  __attribute__((always_inline)) void Pair(const uint8_t* at, int pair, const float* x, Reg (*sum)[kVecs]) const {
    Reg even[kVecs];
    Reg odd[kVecs];
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      W::Load(at + v / kPanelVecs * t_.panel_bytes, pair, v % kPanelVecs * Vec::kWidth, &even[v], &odd[v]);
    }
    Multiply(x, even, sum);
    Multiply(x + R, odd, sum);
  }

  // Panels that begin in another block of outputs have another scale.
  __attribute__((always_inline)) void Fold(Reg (*sum)[kVecs], const float* scales, int block, int blocks,
                                           float (*total)[kVecs * Vec::kWidth]) const {
    const int row = (t_.first_panel + panel_) * kPanel / kScaleBlock;
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      const int own = (t_.first_panel + panel_ + v / kPanelVecs) * kPanel / kScaleBlock;
      const Reg scale = Vec::Set(scales[(own - row) * blocks + block] * Vec::kFp8Factor);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        float* at = &total[r][v * Vec::kWidth];
        Vec::Store(at, Vec::Fma(sum[r][v], scale, Vec::Load(at)));
      }
    }
  }

  // kInt8: of each output.
  Reg ScaleOf(int v) const { return Vec::Load(t_.scales + (t_.first_panel + panel_) * kPanel + v * Vec::kWidth); }

  void Put(int row, int v, Reg value) const {
    const int left = t_.outputs - panel_ * kPanel - v * Vec::kWidth;
    float* y = t_.y + row * t_.y_stride + panel_ * kPanel + v * Vec::kWidth;
    if (left >= Vec::kWidth) {
      Vec::Store(y, value);
    } else if (left > 0) {
      Vec::StoreSome(y, value, left);
    }
  }

  const LinearStrip& t_;
  const int panel_;
  const float* const x_;
  const uint8_t* const w_;
};

template <int R, int P, WeightFormat kFormat>
void RunPanels(const LinearStrip& strip, int panel) {
  for (; panel + P <= strip.panels; panel += P) Block<R, P, kFormat>(strip, panel).Run();
  if constexpr (P > 1) {
    if (panel < strip.panels) RunPanels<R, (P > 4 ? 4 : P - 1), kFormat>(strip, panel);
  }
}

template <WeightFormat kFormat, int R>
void RunStrip(const LinearStrip& strip) {
  if (strip.rows == R) return RunPanels<R, LinearShape::Panels(R), kFormat>(strip, 0);
  if constexpr (R > 1 && R != LinearShape::kRows + 1) RunStrip<kFormat, R - 1>(strip);
}

}  // namespace
}  // namespace margay

// Takes its weights and its inner loop from above.
#include "kernels/linear/linear_unpacked.h"

namespace margay {
namespace {

template <WeightFormat kFormat>
void MultiplyStrip(const LinearStrip* strip) {
  constexpr int kDirect = LinearShape::kDirectRows[static_cast<int>(kFormat)];
  constexpr int kLone = LinearShape::kLoneRows[static_cast<int>(kFormat)];
  if constexpr (kLone > LinearShape::kRows) {
    if (strip->rows > LinearShape::kRows) return RunStrip<kFormat, kLone>(*strip);
  }
  if constexpr (kDirect < LinearShape::kRows) {
    if (strip->rows > kDirect) return MultiplyUnpacked<kFormat>(strip, 1);
  }
  RunStrip<kFormat, kDirect>(*strip);
}

int PackedInputs(int in) { return (in + 3) / 4 * 4; }

int64_t PackedBytes(int rows, int in) { return int64_t{4} * PackedInputs(in) * rows; }

// [inputs, filled up to a multiple of four with zeros][rows]
void PackRows(const LinearRows* rows) {
  auto* packed = static_cast<float*>(rows->packed);
  const int count = rows->rows;
  const auto row = [&](int r) { return rows->x + (rows->x_rows == nullptr ? r : rows->x_rows[r]) * rows->x_stride; };
  Transpose(row, count, count, rows->in, count, packed);
  for (int64_t i = int64_t{rows->in} * count; i < int64_t{PackedInputs(rows->in)} * count; ++i) packed[i] = 0;
}

// Floats are what unpacking would make of them, and int8 weights have paths of their own where speed counts.
template <WeightFormat kFormat>
constexpr auto Together() -> void (*)(const LinearStrip*, int) {
  if constexpr (kFormat == WeightFormat::kBf16 || kFormat == WeightFormat::kFp8) return MultiplyUnpacked<kFormat>;
  return nullptr;
}

template <WeightFormat kFormat>
constexpr LinearKernel kFloatKernel = {Activations::kF32,
                                       LinearShape::kRows,
                                       LinearShape::kLoneRows[static_cast<int>(kFormat)],
                                       LinearShape::Panels,
                                       PackedBytes,
                                       PackRows,
                                       MultiplyStrip<kFormat>,
                                       Together<kFormat>()};

constexpr LinearKernels kFloatKernels = {
    {kFloatKernel<WeightFormat::kBf16>, kFloatKernel<WeightFormat::kF32>, kFloatKernel<WeightFormat::kFp8>, kFloatKernel<WeightFormat::kInt8>}};

}  // namespace
}  // namespace margay
