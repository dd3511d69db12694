// Row-wise operations; included after a vec_*.h.
#pragma once

#include "kernels/pointwise/pointwise.h"
#include "kernels/vec/vec_math.h"

namespace margay {
namespace {

inline Vec::Reg InverseRoot(Vec::Reg squares, int n, float eps) {
  return Vec::Set(1.0F / __builtin_sqrtf(Vec::Sum(squares) / static_cast<float>(n) + eps));
}

inline Vec::Reg InverseNorm(const float* x, int n, float eps) {
  Vec::Reg squares = Vec::Zero();
  for (int i = 0; i < n; i += kW) {
    const Vec::Reg v = LoadUpTo(x + i, n - i);
    squares = Vec::Fma(v, v, squares);
  }
  return InverseRoot(squares, n, eps);
}

inline Vec::Reg Normed(const float* x, const float* weight, Vec::Reg inverse, int left) {
  return Vec::Mul(Vec::Mul(LoadUpTo(x, left), inverse), LoadUpTo(weight, left));
}

void RmsNorm(const float* x, const float* weight, int n, float eps, float* y) {
  const Vec::Reg inverse = InverseNorm(x, n, eps);
  for (int i = 0; i < n; i += kW) StoreUpTo(y + i, Normed(x + i, weight + i, inverse, n - i), n - i);
}

void RmsNormBf16(const float* x, const float* weight, int n, float eps, uint16_t* y) {
  const Vec::Reg inverse = InverseNorm(x, n, eps);
  for (int i = 0; i < n; i += kW) {
    Vec::StoreBf16Some(y + i, Normed(x + i, weight + i, inverse, n - i), n - i < kW ? n - i : kW);
  }
}

void AddNorm(float* x, const float* a, const float* b, const float* weight, int n, float eps, float* y) {
  Vec::Reg squares = Vec::Zero();
  for (int i = 0; i < n; i += kW) {
    Vec::Reg v = Vec::Add(LoadUpTo(x + i, n - i), LoadUpTo(a + i, n - i));
    if (b != nullptr) v = Vec::Add(v, LoadUpTo(b + i, n - i));
    StoreUpTo(x + i, v, n - i);
    squares = Vec::Fma(v, v, squares);
  }
  if (weight == nullptr) return;
  const Vec::Reg inverse = InverseRoot(squares, n, eps);
  for (int i = 0; i < n; i += kW) StoreUpTo(y + i, Normed(x + i, weight + i, inverse, n - i), n - i);
}

void WeightedSum(const float* const* from, const float* weights, int count, int n, float* y) {
  for (int i = 0; i < n; i += kW) {
    Vec::Reg sum = Vec::Zero();
    for (int k = 0; k < count; ++k) sum = Vec::Fma(Vec::Set(weights[k]), LoadUpTo(from[k] + i, n - i), sum);
    StoreUpTo(y + i, sum, n - i);
  }
}

void SiluMul(const float* gate, const float* up, int n, float* y) {
  for (int i = 0; i < n; i += kW) {
    const Vec::Reg g = LoadUpTo(gate + i, n - i);
    const Vec::Reg e = Exp2(Vec::Mul(g, Vec::Set(-kLog2E)));
    const Vec::Reg silu = Vec::Div(g, Vec::Add(e, Vec::Set(1.0F)));
    StoreUpTo(y + i, Vec::Mul(silu, LoadUpTo(up + i, n - i)), n - i);
  }
}

void Softmax(float* x, int n) {
  float top = x[0];
  int i = 0;
  if (n >= kW) {
    Vec::Reg highest = Vec::Load(x);
    for (i = kW; i + kW <= n; i += kW) highest = Vec::Max(highest, Vec::Load(x + i));
    top = Vec::Highest(highest);
  }
  for (; i < n; ++i) top = x[i] > top ? x[i] : top;
  const auto power = [&](int at) {
    return Exp2(Vec::Mul(Vec::Sub(LoadUpTo(x + at, n - at), Vec::Set(top)), Vec::Set(kLog2E)));
  };
  Vec::Reg sums = Vec::Zero();
  for (i = 0; i + kW <= n; i += kW) {
    const Vec::Reg e = power(i);
    Vec::Store(x + i, e);
    sums = Vec::Add(sums, e);
  }
  float sum = Vec::Sum(sums);
  if (i < n) StoreUpTo(x + i, power(i), n - i);
  for (; i < n; ++i) sum += x[i];
  const Vec::Reg inverse = Vec::Set(1.0F / sum);
  for (i = 0; i < n; i += kW) StoreUpTo(x + i, Vec::Mul(LoadUpTo(x + i, n - i), inverse), n - i);
}

// Insertion into a short sorted list: few slots beat its last entry, and those that do not are passed by in vectors.
void TopSlots(const float* values, const float* bias, int slots, int count, int32_t* chosen) {
  const auto score = [&](int32_t slot) { return values[slot] + bias[slot]; };
  int filled = 0;
  for (int first = 0; first < slots; first += kW) {
    if (filled == count) {
      const Vec::Reg scores = Vec::Add(LoadUpTo(values + first, slots - first), LoadUpTo(bias + first, slots - first));
      if (!Vec::AnyGreater(scores, Vec::Set(score(chosen[count - 1])))) continue;
    }
    for (int slot = first; slot < slots && slot < first + kW; ++slot) {
      const float mine = score(slot);
      if (filled == count && !(mine > score(chosen[count - 1]))) continue;
      if (filled < count) ++filled;
      int at = filled - 1;
      for (; at > 0 && mine > score(chosen[at - 1]); --at) chosen[at] = chosen[at - 1];
      chosen[at] = slot;
    }
  }
}

// Rows of bf16 pass from one core's cache to another's, one behind the other in memory: asked for this many values early,
// more of them are on their way at once than the processor asks for by itself.
constexpr int kBf16Ahead = 1024;

void ToBf16(const float* x, int n, uint16_t* y) {
  int i = 0;
  for (; i + 2 * kW <= n; i += 2 * kW) {
    __builtin_prefetch(y + i + kBf16Ahead, 1);
    Vec::StoreBf16Two(y + i, Vec::Load(x + i), Vec::Load(x + i + kW));
  }
  for (; i < n; i += kW) {
    const int left = n - i < kW ? n - i : kW;
    Vec::StoreBf16Some(y + i, LoadUpTo(x + i, n - i), left);
  }
}

void FromBf16(const uint16_t* x, int n, float* y) {
  for (int i = 0; i < n; i += kW) {
    if (i % (2 * kW) == 0) __builtin_prefetch(x + i + kBf16Ahead, 0, 2);
    StoreUpTo(y + i, n - i >= kW ? Vec::LoadBf16(x + i) : Vec::LoadBf16Some(x + i, n - i), n - i);
  }
}

void AddBf16(const uint16_t* x, float weight, int n, float* y) {
  for (int i = 0; i < n; i += kW) {
    if (i % (2 * kW) == 0) __builtin_prefetch(x + i + kBf16Ahead, 0, 2);
    const Vec::Reg v = n - i >= kW ? Vec::LoadBf16(x + i) : Vec::LoadBf16Some(x + i, n - i);
    StoreUpTo(y + i, Vec::Fma(Vec::Set(weight), v, LoadUpTo(y + i, n - i)), n - i);
  }
}

void AddScaled(const float* x, float weight, int n, float* y) {
  for (int i = 0; i < n; i += kW) {
    StoreUpTo(y + i, Vec::Fma(Vec::Set(weight), LoadUpTo(x + i, n - i), LoadUpTo(y + i, n - i)), n - i);
  }
}

}  // namespace
}  // namespace margay
