// kernels: compares every kernel of every usable code path with the plain reference over ugly shapes, and prints one JSON
// line per path and operation: shapes tried, largest error relative to the size of the terms that were summed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/code_path.h"
#include "kernels/linear/linear_ref.h"
#include "kernels/linear/matmul_list.h"
#include "kernels/linear/panel_layout.h"
#include "kernels/pointwise/pointwise_ref.h"
#include "core/number_formats.h"
#include "tally.h"

namespace margay::tests {
namespace {

struct Packed {
  std::vector<std::byte> bytes;
  std::vector<float> scales;
  std::vector<float> bias;
  std::vector<float> dense;  // [in, out]: what the bytes mean
  MatmulWeights view;
};

Packed Pack(Random* random, int out, int in, WeightFormat format, bool with_bias) {
  Packed p;
  const int panels = (out + kPanel - 1) / kPanel;
  p.bytes.resize(static_cast<size_t>(panels) * PanelBytes(format, in));
  const int scale_columns = (in + 127) / 128;
  p.scales = random->Floats((out + 127) / 128 * scale_columns);
  p.dense.resize(static_cast<size_t>(in) * static_cast<size_t>(out));
  if (with_bias) p.bias = random->Floats(out);
  for (int o = 0; o < out; ++o) {
    for (int k = 0; k < in; ++k) {
      std::byte* at = p.bytes.data() + static_cast<size_t>(o / kPanel) * PanelBytes(format, in) + WeightOffset(format, o % kPanel, k);
      float& meaning = p.dense[static_cast<size_t>(k) * static_cast<size_t>(out) + static_cast<size_t>(o)];
      if (format == WeightFormat::kBf16) {
        const uint16_t bits = FloatToBf16(random->Next());
        std::memcpy(at, &bits, 2);
        meaning = Bf16ToFloat(bits);
      } else if (format == WeightFormat::kF32) {
        meaning = random->Next();
        std::memcpy(at, &meaning, 4);
      } else {
        int code = random->Below(256);
        if ((code & 0x7f) == 0x7f) code = 0x05;  // a denormal instead of not-a-number
        *at = static_cast<std::byte>(code);
        meaning = kFp8Values[static_cast<size_t>(code)] * p.scales[static_cast<size_t>(o / 128 * scale_columns + k / 128)];
      }
    }
  }
  p.view = {format, out, in, p.bytes.data(), p.scales.data(), with_bias ? p.bias.data() : nullptr};
  return p;
}

// y and, per output, the sum of the terms' sizes.
void Reference(const Packed& p, const std::vector<float>& x, int rows, ThreadPool* pool, std::vector<float>* y, std::vector<float>* size) {
  const size_t count = static_cast<size_t>(rows) * static_cast<size_t>(p.view.out);
  y->resize(count);
  size->resize(count);
  std::vector<float> dense = p.dense;
  std::vector<float> inputs = x;
  reference::Linear({x.data(), p.view.in, rows, dense.data(), p.view.bias, p.view.in, p.view.out, y->data(), p.view.out}, pool);
  for (float& value : dense) value = std::fabs(value);
  for (float& value : inputs) value = std::fabs(value);
  reference::Linear({inputs.data(), p.view.in, rows, dense.data(), nullptr, p.view.in, p.view.out, size->data(), p.view.out}, pool);
}

constexpr int kRowCounts[] = {1, 2, 3, 5, 6, 7, 13, 15, 16, 17, 63, 64, 65};
constexpr struct {
  int out, in;
} kMatrices[] = {{1, 1}, {16, 2}, {17, 3}, {31, 48}, {48, 129}, {128, 128}, {130, 257}, {200, 96}, {272, 131}};

void CheckMatmul(const CodePath& path, ThreadPool* pool) {
  constexpr const char* kNames[] = {"matmul_bf16", "matmul_f32", "matmul_fp8"};
  Random random;
  MatmulList list(path.linear, path.pointwise, pool, 4);
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kF32, WeightFormat::kFp8}) {
    Tally tally;
    Tally rows_alone;
    for (const auto& [out, in] : kMatrices) {
      const Packed p = Pack(&random, out, in, format, out % 2 == 1);
      for (const int rows : kRowCounts) {
        const std::vector<float> x = random.Floats(rows * in);
        std::vector<float> want;
        std::vector<float> size;
        Reference(p, x, rows, pool, &want, &size);
        const int stride = out + 3;
        std::vector<float> y(static_cast<size_t>(rows * stride), 77.0F);
        const MatmulJob job{p.view, nullptr, x.data(), in, nullptr, rows, y.data(), stride};
        list.Run({&job, 1});
        std::vector<float> alone(static_cast<size_t>(out));
        for (int row = 0; row < rows; ++row) {
          const MatmulJob one{p.view, nullptr, x.data() + row * in, in, nullptr, 1, alone.data(), out};
          list.Run({&one, 1});
          for (int o = 0; o < stride; ++o) {
            const float got = y[static_cast<size_t>(row * stride + o)];
            if (o >= out) {
              tally.Add(got, 77, 1e-3);  // nothing is written beyond a row
              continue;
            }
            const auto i = static_cast<size_t>(row * out + o);
            tally.Add(got, want[i], size[i]);
            rows_alone.Add(got, alone[static_cast<size_t>(o)], 1);
          }
        }
        ++tally.shapes;
        ++rows_alone.shapes;
      }
    }
    tally.Print(path.name, kNames[static_cast<size_t>(format)]);
    rows_alone.Print(path.name, (std::string(kNames[static_cast<size_t>(format)]) + "_row_alone").c_str());
  }
}

// Several jobs at once, rows picked by index, gate and up fused: as the experts run.
void CheckGrouped(const CodePath& path, ThreadPool* pool) {
  Random random;
  Tally tally;
  MatmulList list(path.linear, path.pointwise, pool, 8);
  for (const auto& [out, in] : kMatrices) {
    const std::vector<float> x = random.Floats(70 * in);
    std::vector<Packed> gates;
    std::vector<Packed> ups;
    std::vector<std::vector<int32_t>> picks;
    std::vector<std::vector<float>> results;
    for (const int rows : {1, 17, 65, 4}) {
      const WeightFormat format = rows == 17 ? WeightFormat::kFp8 : WeightFormat::kBf16;
      gates.push_back(Pack(&random, out, in, format, false));
      ups.push_back(Pack(&random, out, in, rows == 65 ? WeightFormat::kF32 : format, false));
      for (auto& r : picks.emplace_back(static_cast<size_t>(rows))) r = random.Below(70);
      results.emplace_back(static_cast<size_t>(rows * out));
    }
    std::vector<MatmulJob> jobs;
    for (size_t j = 0; j < gates.size(); ++j) {
      jobs.push_back({gates[j].view, &ups[j].view, x.data(), in, picks[j].data(), static_cast<int>(picks[j].size()), results[j].data(), out});
    }
    list.Run(jobs);
    for (size_t j = 0; j < jobs.size(); ++j) {
      std::vector<float> picked;
      for (const int32_t r : picks[j]) picked.insert(picked.end(), x.begin() + r * in, x.begin() + (r + 1) * in);
      std::vector<float> gate;
      std::vector<float> up;
      std::vector<float> gate_size;
      std::vector<float> up_size;
      Reference(gates[j], picked, jobs[j].rows, pool, &gate, &gate_size);
      Reference(ups[j], picked, jobs[j].rows, pool, &up, &up_size);
      std::vector<float> want(gate.size());
      reference::SiluMul(gate.data(), up.data(), static_cast<int>(gate.size()), want.data());
      for (size_t i = 0; i < want.size(); ++i) tally.Add(results[j][i], want[i], gate_size[i] * up_size[i] + 1e-3F);
    }
    ++tally.shapes;
  }
  tally.Print(path.name, "grouped_gate_up");
}

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
  ThreadPool pool(2);
  for (const CodePath& path : UsableCodePaths()) {
    CheckMatmul(path, &pool);
    CheckGrouped(path, &pool);
    CheckNorms(path);
    CheckRowwise(path);
    CheckTopSlots(path);
  }
  return 0;
}

}  // namespace
}  // namespace margay::tests

int main() { return margay::tests::Main(); }
