// kernels: compares the row-wise operations of every usable code path with plain ones over ugly shapes, and prints one JSON
// line per path and operation: shapes tried, largest error relative to the size of the terms that were summed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/code_path.h"
#include "kernels/pointwise/pointwise_ref.h"
#include "core/number_formats.h"
#include "tally.h"

namespace margay::tests {
namespace {

constexpr int kWidths[] = {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 96, 100, 768};

void CheckNorms(const CodePath& path) {
  Random random;
  Tally norm;
  Tally rounded;
  Tally added;
  for (const int n : kWidths) {
    const auto width = static_cast<size_t>(n);
    const std::vector<float> a = random.Floats(n);
    const std::vector<float> b = random.Floats(n);
    const std::vector<float> weight = random.Floats(n);
    std::vector<float> got(width + 1, 5.0F);
    std::vector<float> want(width);
    path.pointwise->rms_norm(a.data(), weight.data(), n, 1e-5F, got.data());
    reference::RmsNorm(a.data(), weight.data(), n, 1e-5F, 1, want.data());
    for (size_t i = 0; i < width; ++i) norm.Add(got[i], want[i], 2);
    norm.Add(got.back(), 5, 1e-3);
    ++norm.shapes;
    std::vector<uint16_t> bits(width + 1, 77);
    path.pointwise->rms_norm_bf16(a.data(), weight.data(), n, 1e-5F, bits.data());
    for (size_t i = 0; i < width; ++i) rounded.Add(bits[i], FloatToBf16(got[i]), 1);
    rounded.Add(bits.back(), 77, 1);
    ++rounded.shapes;
    for (const bool both : {false, true}) {
      std::vector<float> x = weight;
      x.push_back(5.0F);
      path.pointwise->add_norm(x.data(), a.data(), both ? b.data() : nullptr, b.data(), n, 1e-5F, got.data());
      std::vector<float> sum(width);
      for (size_t i = 0; i < width; ++i) sum[i] = weight[i] + a[i] + (both ? b[i] : 0);
      reference::RmsNorm(sum.data(), b.data(), n, 1e-5F, 1, want.data());
      for (size_t i = 0; i < width; ++i) {
        added.Add(x[i], sum[i], 1);
        added.Add(got[i], want[i], 2);
      }
      added.Add(x.back(), 5, 1e-3);
      added.Add(got.back(), 5, 1e-3);
      x = weight;
      path.pointwise->add_norm(x.data(), a.data(), both ? b.data() : nullptr, nullptr, n, 1e-5F, nullptr);
      for (size_t i = 0; i < width; ++i) added.Add(x[i], sum[i], 1);
      ++added.shapes;
    }
  }
  norm.Print(path.name, "rms_norm");
  rounded.Print(path.name, "rms_norm_bf16");
  added.Print(path.name, "add_norm");
}

void CheckRowwise(const CodePath& path) {
  Random random;
  Tally silu;
  Tally softmax;
  Tally sums;
  Tally bf16;
  for (const int n : kWidths) {
    std::vector<float> a = random.Floats(n);
    const std::vector<float> b = random.Floats(n);
    std::vector<float> got(static_cast<size_t>(n) + 1, 5.0F);
    std::vector<float> want(static_cast<size_t>(n));
    const auto compare = [&](Tally* tally, double scale) {
      for (size_t i = 0; i < want.size(); ++i) tally->Add(got[i], want[i], scale);
      tally->Add(got.back(), 5, 1e-3);
      ++tally->shapes;
    };
    for (const int count : {0, 1, 2, 5}) {
      const float* from[] = {a.data(), b.data(), a.data(), b.data(), b.data()};
      const float weights[] = {0.5F, -3, 7, 0, 1.25F};
      path.pointwise->weighted_sum(from, weights, count, n, got.data());
      for (size_t i = 0; i < want.size(); ++i) {
        want[i] = 0;
        for (int k = 0; k < count; ++k) want[i] += weights[k] * from[k][i];
      }
      compare(&sums, 20);
    }
    for (float& value : a) value *= 40;
    a[0] = -200;
    path.pointwise->silu_mul(a.data(), b.data(), n, got.data());
    reference::SiluMul(a.data(), b.data(), n, want.data());
    compare(&silu, 80);
    std::copy(a.begin(), a.end(), got.begin());
    want = a;
    path.pointwise->softmax(got.data(), n);
    reference::Softmax(want.data(), n);
    compare(&softmax, 1);
    std::vector<uint16_t> bits(static_cast<size_t>(n));
    if (n > 8) a[3] = 1.00390625F, a[4] = 1.01171875F, a[5] = -1e-40F, a[6] = 3.4e38F;  // ties to even, denormal, rounds to infinity
    path.pointwise->to_bf16(a.data(), n, bits.data());
    path.pointwise->from_bf16(bits.data(), n, got.data());
    for (size_t i = 0; i < want.size(); ++i) {
      bf16.Add(bits[i], FloatToBf16(a[i]), 1);
      bf16.Add(FloatToBf16(got[i]), bits[i], 1);
    }
    ++bf16.shapes;
  }
  silu.Print(path.name, "silu_mul");
  softmax.Print(path.name, "softmax");
  sums.Print(path.name, "weighted_sum");
  bf16.Print(path.name, "bf16");
}

// Rows as they travel between ranks: e4m3 with a scale, and what is added up of bf16 and fp32.
void CheckTravelling(const CodePath& path) {
  Random random;
  Tally fp8;
  Tally added;
  for (const int n : kWidths) {
    std::vector<float> values = random.Floats(n), sum = random.Floats(n), want = sum;
    for (size_t i = 0; i < values.size(); ++i) values[i] *= i % 3 == 0 ? 1e-3F : 10;  // some below the least normal code
    if (n > 8) values[4] = 0, values[5] = 1e-40F, values[6] = -0.0F;
    std::vector<uint8_t> codes(values.size());
    std::vector<float> back(values.size());
    const float scale = path.pointwise->to_fp8(values.data(), n, codes.data());
    path.pointwise->from_fp8(codes.data(), scale, n, back.data());
    float most = 0;
    for (const float value : values) most = std::max(most, std::fabs(value));
    if (most == 0) most = 448;
    fp8.Add(scale, most / 448, 1);
    for (size_t i = 0; i < values.size(); ++i) {
      fp8.Add(codes[i], FloatToFp8(values[i] * (448 / most)), 1);
      fp8.Add(back[i], kFp8Values[codes[i]] * scale, 1);
    }
    ++fp8.shapes;
    std::vector<uint16_t> bits(values.size());
    path.pointwise->to_bf16(values.data(), n, bits.data());
    path.pointwise->add_bf16(bits.data(), 0.75F, n, sum.data());
    path.pointwise->add_scaled(values.data(), -1.5F, n, sum.data());
    for (size_t i = 0; i < values.size(); ++i) added.Add(sum[i], want[i] + 0.75F * Bf16ToFloat(bits[i]) - 1.5F * values[i], 20);
    ++added.shapes;
  }
  // Every code comes back as itself, 0x80 and not-a-number too.
  std::vector<uint8_t> codes(256), again(256);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i);
  std::vector<float> values(256);
  path.pointwise->from_fp8(codes.data(), 1, 256, values.data());
  for (size_t i = 0; i < codes.size(); ++i) {
    const bool number = (codes[i] & 0x7fU) != 0x7fU;
    fp8.Add(number ? values[i] : 0, number ? kFp8Values[i] : 0, 1);
    fp8.Add(std::isnan(values[i]) ? 1 : 0, number ? 0 : 1, 1);
    if (!number) values[i] = 448;
  }
  const float one = path.pointwise->to_fp8(values.data(), 256, again.data());
  fp8.Add(one, 1, 1);
  for (size_t i = 0; i < codes.size(); ++i) fp8.Add(again[i], (codes[i] & 0x7fU) == 0x7fU ? 0x7e : codes[i], 1);
  fp8.Print(path.name, "fp8");
  added.Print(path.name, "add_scaled");
}

// Against a sort of all slots; many are equal.
void CheckTopSlots(const CodePath& path) {
  Random random;
  Tally tally;
  for (const int slots : {1, 2, 3, 15, 16, 17, 33, 100, 767, 768}) {
    for (const int count : {1, 2, 3, 8, 12, slots}) {
      if (count > slots) continue;
      const std::vector<float> bias = random.Floats(slots);
      std::vector<float> values = random.Floats(slots);
      for (int i = 0; i < slots; i += 3) values[static_cast<size_t>(i)] = 0.5F - bias[static_cast<size_t>(i)];
      std::vector<int32_t> order(static_cast<size_t>(slots));
      for (int i = 0; i < slots; ++i) order[static_cast<size_t>(i)] = i;
      const auto score = [&](int32_t slot) { return values[static_cast<size_t>(slot)] + bias[static_cast<size_t>(slot)]; };
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return score(a) > score(b); });
      std::vector<int32_t> chosen(static_cast<size_t>(count) + 1, -7);
      path.pointwise->top_slots(values.data(), bias.data(), slots, count, chosen.data());
      for (size_t i = 0; i < static_cast<size_t>(count); ++i) tally.Add(chosen[i], order[i], 1);
      tally.Add(chosen.back(), -7, 1);
      ++tally.shapes;
    }
  }
  tally.Print(path.name, "top_slots");
}

int Main() {
  for (const CodePath& path : UsableCodePaths()) {
    CheckNorms(path);
    CheckRowwise(path);
    CheckTravelling(path);
    CheckTopSlots(path);
  }
  return 0;
}

}  // namespace
}  // namespace margay::tests

int main() { return margay::tests::Main(); }
