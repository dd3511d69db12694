// linear: compares the matrix products of every path of this machine with the plain reference over ugly shapes, and
// prints one JSON line per path and property: shapes tried, largest error relative to the size of the terms summed.
//
//   bf16, f32, fp8, int8    by format of weights, on activations rounded as the path rounds them
//   ..._row_alone           from the same row alone: the other rows of a call must not change a bit
//   grouped_gate_up         several products at once, gate and up fused, rows picked by index
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/number_formats.h"
#include "core/thread_pool.h"
#include "kernels/linear/linear_paths.h"
#include "kernels/linear/linear_ref.h"
#include "kernels/linear/matmul_list.h"
#include "kernels/linear/panel_layout.h"
#include "kernels/pointwise/pointwise_ref.h"
#include "emulated_tiles.h"
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
  p.scales = random->Floats(format == WeightFormat::kInt8 ? panels * kPanel : (out + 127) / 128 * scale_columns);
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
      } else if (format == WeightFormat::kInt8) {
        const int value = random->Below(255) - 127;
        *at = static_cast<std::byte>(value + 128);
        meaning = static_cast<float>(value) * p.scales[static_cast<size_t>(o)];
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

// Activations as a kernel takes them.
std::vector<float> Rounded(const std::vector<float>& x, int in, Activations activations) {
  std::vector<float> rounded = x;
  if (activations == Activations::kInt8) {
    for (auto row = rounded.begin(); row != rounded.end(); row += in) {
      float top = 0;
      for (int k = 0; k < in; ++k) top = std::max(top, std::fabs(row[k]));
      for (int k = 0; k < in; ++k) row[k] = top > 0 ? std::nearbyint(row[k] * (127.0F / top)) * (top / 127.0F) : 0;
    }
  }
  return rounded;
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

constexpr int kRowCounts[] = {1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 63, 64, 65};
constexpr struct {
  int out, in;
} kMatrices[] = {{1, 1}, {16, 2}, {17, 3}, {31, 48}, {48, 129}, {128, 128}, {130, 257}, {200, 96}, {272, 131}};

std::string NameOf(WeightFormat format) {
  constexpr const char* kNames[] = {"bf16", "f32", "fp8", "int8"};
  return kNames[static_cast<size_t>(format)];
}

const LinearKernel& KernelOf(const LinearPath& path, WeightFormat format) { return path.kernels.formats[static_cast<size_t>(format)]; }

void CheckMatmul(const LinearPath& path, ThreadPool* pool) {
  Random random;
  MatmulList list(&path.kernels, GenericPointwise(), pool, 4);
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kF32, WeightFormat::kFp8, WeightFormat::kInt8}) {
    Tally tally;
    Tally rows_alone;
    for (const auto& [out, in] : kMatrices) {
      const Packed p = Pack(&random, out, in, format, out % 2 == 1);
      for (const int rows : kRowCounts) {
        std::vector<float> x = random.Floats(rows * in);
        if (rows == 7) std::fill(x.begin(), x.begin() + in, 0.0F);
        std::vector<float> want;
        std::vector<float> size;
        Reference(p, Rounded(x, in, KernelOf(path, format).activations), rows, pool, &want, &size);
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
    tally.Print(path.name, NameOf(format).c_str());
    rows_alone.Print(path.name, (NameOf(format) + "_row_alone").c_str());
  }
}

// Several jobs at once, rows picked by index, gate and up fused: as the experts run, one of them without rows.
void CheckGrouped(const LinearPath& path, ThreadPool* pool) {
  Random random;
  Tally tally;
  MatmulList list(&path.kernels, GenericPointwise(), pool, 8);
  for (const auto& [out, in] : kMatrices) {
    const std::vector<float> x = random.Floats(70 * in);
    std::vector<Packed> gates;
    std::vector<Packed> ups;
    std::vector<std::vector<int32_t>> picks;
    std::vector<std::vector<float>> results;
    for (const int rows : {1, 17, 0, 65, 4, 70}) {
      const WeightFormat format = rows == 17 || rows == 70 ? WeightFormat::kFp8 : rows == 4 ? WeightFormat::kInt8 : WeightFormat::kBf16;
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
      const auto rounded = [&](const Packed& p) { return Rounded(picked, in, KernelOf(path, p.view.format).activations); };
      Reference(gates[j], rounded(gates[j]), jobs[j].rows, pool, &gate, &gate_size);
      Reference(ups[j], rounded(ups[j]), jobs[j].rows, pool, &up, &up_size);
      std::vector<float> want(gate.size());
      reference::SiluMul(gate.data(), up.data(), static_cast<int>(gate.size()), want.data());
      for (size_t i = 0; i < want.size(); ++i) tally.Add(results[j][i], want[i], gate_size[i] * up_size[i] + 1e-3F);
    }
    ++tally.shapes;
  }
  tally.Print(path.name, "grouped_gate_up");
}

int Main() {
  ThreadPool pool(2);
  std::vector<LinearPath> paths = UsableLinearPaths();
  paths.push_back({"amx emulated", *GenericLinear()});
  paths.back().kernels.formats[static_cast<size_t>(WeightFormat::kBf16)] = EmulatedTileLinear();
  for (const LinearPath& path : paths) {
    CheckMatmul(path, &pool);
    CheckGrouped(path, &pool);
  }
  return 0;
}

}  // namespace
}  // namespace margay::tests

int main() { return margay::tests::Main(); }
