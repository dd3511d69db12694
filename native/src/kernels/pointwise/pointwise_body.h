// Row-wise operations; included after a vec_*.h.
#pragma once

#include "kernels/pointwise/pointwise.h"
#include "kernels/vec/vec_math.h"

namespace margay {
namespace {

void RmsNorm(const float* x, const float* weight, int n, float eps, float* y) {
  Vec::Reg squares = Vec::Zero();
  for (int i = 0; i < n; i += kW) {
    const Vec::Reg v = LoadUpTo(x + i, n - i);
    squares = Vec::Fma(v, v, squares);
  }
  const float mean = Vec::Sum(squares) / static_cast<float>(n);
  const Vec::Reg inverse = Vec::Set(1.0F / __builtin_sqrtf(mean + eps));
  for (int i = 0; i < n; i += kW) {
    const Vec::Reg v = Vec::Mul(LoadUpTo(x + i, n - i), inverse);
    StoreUpTo(y + i, Vec::Mul(v, LoadUpTo(weight + i, n - i)), n - i);
  }
}

void AddTo(float* x, const float* y, int n) {
  for (int i = 0; i < n; i += kW) StoreUpTo(x + i, Vec::Add(LoadUpTo(x + i, n - i), LoadUpTo(y + i, n - i)), n - i);
}

void AddScaled(float* x, float a, const float* y, int n) {
  const Vec::Reg factor = Vec::Set(a);
  for (int i = 0; i < n; i += kW) {
    StoreUpTo(x + i, Vec::Fma(factor, LoadUpTo(y + i, n - i), LoadUpTo(x + i, n - i)), n - i);
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
  for (int i = 1; i < n; ++i) top = x[i] > top ? x[i] : top;
  const Vec::Reg shift = Vec::Set(top);
  float sum = 0;
  for (int i = 0; i < n; i += kW) {
    const Vec::Reg e = Exp2(Vec::Mul(Vec::Sub(LoadUpTo(x + i, n - i), shift), Vec::Set(kLog2E)));
    StoreUpTo(x + i, e, n - i);
    for (int j = i; j < n && j < i + kW; ++j) sum += x[j];
  }
  const Vec::Reg inverse = Vec::Set(1.0F / sum);
  for (int i = 0; i < n; i += kW) StoreUpTo(x + i, Vec::Mul(LoadUpTo(x + i, n - i), inverse), n - i);
}

void ToBf16(const float* x, int n, uint16_t* y) {
  for (int i = 0; i < n; i += kW) {
    const int left = n - i < kW ? n - i : kW;
    Vec::StoreBf16Some(y + i, LoadUpTo(x + i, n - i), left);
  }
}

void FromBf16(const uint16_t* x, int n, float* y) {
  for (int i = 0; i < n; i += kW) {
    StoreUpTo(y + i, n - i >= kW ? Vec::LoadBf16(x + i) : Vec::LoadBf16Some(x + i, n - i), n - i);
  }
}

}  // namespace
}  // namespace margay
