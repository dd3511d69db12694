// What the vector types share; included after a vec_*.h.
#pragma once

namespace margay {
namespace {

constexpr int kW = Vec::kWidth;
constexpr float kLog2E = 1.44269504088896341F;

inline Vec::Reg LoadUpTo(const float* p, int n) { return n >= kW ? Vec::Load(p) : Vec::LoadSome(p, n); }
inline void StoreUpTo(float* p, Vec::Reg a, int n) { n >= kW ? Vec::Store(p, a) : Vec::StoreSome(p, a, n); }

// 2^x to about one unit in the last place; x outside [-126, 126] counts as the border.
inline Vec::Reg Exp2(Vec::Reg x) {
  x = Vec::Min(Vec::Max(x, Vec::Set(-126.0F)), Vec::Set(126.0F));
  Vec::Reg f;
  const Vec::Reg power = Vec::SplitPower(x, &f);
  // Taylor coefficients ln(2)^n / n!; |f| <= 1/2.
  Vec::Reg p = Vec::Set(1.54035304e-4F);
  p = Vec::Fma(p, f, Vec::Set(1.33335581e-3F));
  p = Vec::Fma(p, f, Vec::Set(9.61812911e-3F));
  p = Vec::Fma(p, f, Vec::Set(5.55041087e-2F));
  p = Vec::Fma(p, f, Vec::Set(2.40226507e-1F));
  p = Vec::Fma(p, f, Vec::Set(6.93147181e-1F));
  p = Vec::Fma(p, f, Vec::Set(1.0F));
  return Vec::Mul(p, power);
}

}  // namespace
}  // namespace margay
