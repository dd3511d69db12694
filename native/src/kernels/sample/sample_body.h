// Passes over a vocabulary; included after a vec_*.h.
#pragma once

#include "kernels/sample/sample_kernels.h"
#include "kernels/vec/vec_math.h"

namespace margay {
namespace {

constexpr float kLeast = -__builtin_inff();
constexpr int kMassBlock = 1024;  // values summed up in fp32 lanes

bool Scan(const float* x, int n, float* top, float* tops) {
  // v - v is zero for finite values and no number for the others, and so is every sum with it.
  Vec::Reg zeros = Vec::Zero();
  float zero = 0;
  float highest = kLeast;
  for (int first = 0; first < n; first += kLogitGroup) {
    const int end = n - first < kLogitGroup ? n : first + kLogitGroup;
    Vec::Reg group = Vec::Set(kLeast);
    int i = first;
    for (; i + kW <= end; i += kW) {
      const Vec::Reg v = Vec::Load(x + i);
      group = Vec::Max(v, group);
      zeros = Vec::Add(zeros, Vec::Sub(v, v));
    }
    float most = Vec::Highest(group);
    for (; i < end; ++i) {
      most = x[i] > most ? x[i] : most;
      zero += x[i] - x[i];
    }
    tops[first / kLogitGroup] = most;
    highest = most > highest ? most : highest;
  }
  *top = highest;
  return Vec::Sum(zeros) + zero == 0;
}

// exp((x - top) * inverse), exactly zero from where Exp2 has its border.
inline Vec::Reg Mass(Vec::Reg x, Vec::Reg top, Vec::Reg factor) {
  return Vec::Sub(Exp2(Vec::Mul(Vec::Sub(x, top), factor)), Vec::Set(1.17549435e-38F));
}

double Mass(const float* x, int n, float top, float inverse) {
  const Vec::Reg shift = Vec::Set(top);
  const Vec::Reg factor = Vec::Set(inverse * kLog2E);
  double total = 0;
  for (int first = 0; first < n; first += kMassBlock) {
    const int end = n - first < kMassBlock ? n : first + kMassBlock;
    Vec::Reg sum = Vec::Zero();
    int i = first;
    for (; i + kW <= end; i += kW) sum = Vec::Add(sum, Mass(Vec::Load(x + i), shift, factor));
    total += static_cast<double>(Vec::Sum(sum));
    if (i == end) continue;
    float last[kW];
    Vec::Store(last, Mass(Vec::LoadSome(x + i, end - i), shift, factor));
    for (int lane = 0; lane < end - i; ++lane) total += static_cast<double>(last[lane]);
  }
  return total;
}

void Masses(const float* x, int n, float top, float inverse, float* y) {
  const Vec::Reg shift = Vec::Set(top);
  const Vec::Reg factor = Vec::Set(inverse * kLog2E);
  for (int i = 0; i < n; i += kW) StoreUpTo(y + i, Mass(LoadUpTo(x + i, n - i), shift, factor), n - i);
}

int AtLeast(const float* x, int n, float least, int32_t* indices) {
  const Vec::Reg border = Vec::Set(least);
  int found = 0;
  for (int i = 0; i < n; i += kW) {
    if (n - i >= kW && !Vec::AnyAtLeast(Vec::Load(x + i), border)) continue;
    for (int at = i; at < n && at < i + kW; ++at) {
      if (x[at] >= least) indices[found++] = at;
    }
  }
  return found;
}

}  // namespace
}  // namespace margay
