#include "model/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "core/number_formats.h"
#include "kernels/linear/panel_layout.h"

namespace margay {
namespace {

// One output's inputs into its lane of a panel.
void PutOutput(const float* values, int64_t stride, int in, WeightFormat format, int lane, std::byte* panel) {
  for (int k = 0; k < in; ++k) {
    const float value = values[k * stride];
    std::byte* to = panel + WeightOffset(format, lane, k);
    if (format == WeightFormat::kF32) {
      *reinterpret_cast<float*>(to) = value;
    } else {
      *reinterpret_cast<uint16_t*>(to) = FloatToBf16(value);
    }
  }
}

Status PutFp8(const Checkpoint& checkpoint, const LinearTensors& from, std::byte* out) {
  const auto in = static_cast<size_t>(from.in);
  std::vector<uint8_t> rows(in * kPanel);
  for (int first = 0; first < from.out; first += kPanel) {
    const auto count = static_cast<size_t>(std::min(kPanel, from.out - first));
    if (Status read = checkpoint.Read(*from.weight, static_cast<uint64_t>(first) * in, rows.data(), count * in); !read.ok()) return read;
    for (size_t lane = 0; lane < count; ++lane) {
      for (size_t k = 0; k < in; ++k) {
        const uint8_t code = rows[lane * in + k];
        if ((code & 0x7fU) == 0x7fU) {
          return Status(Code::kCheckpoint, "tensor " + from.weight->name + " holds a value that is not finite, at element " +
                                               std::to_string((static_cast<size_t>(first) + lane) * in + k));
        }
        out[WeightOffset(WeightFormat::kFp8, static_cast<int>(lane), static_cast<int>(k))] = std::byte{code};
      }
    }
    out += PanelBytes(WeightFormat::kFp8, from.in);
  }
  return Status::Ok();
}

}  // namespace

PackedMatrix PackLinear(const Checkpoint& checkpoint, const LinearTensors& from, PackPlan* plan) {
  PackedMatrix m;
  if (from.weight->dtype == DType::kFp8) {
    m = {WeightFormat::kFp8, from.out, from.in, 0, 0, 0, false};
    m.weight = plan->Add(static_cast<size_t>(m.panels()) * PanelBytes(m.format, m.in),
                         [&checkpoint, from](std::byte* out) { return PutFp8(checkpoint, from, out); });
    m.scales = PackTable(checkpoint, *from.scales, plan);
  } else {
    m = PackRows(checkpoint, from, 0, from.out, false, plan);
  }
  m.has_bias = from.bias != nullptr;
  if (m.has_bias) m.bias = PackVector(checkpoint, *from.bias, 1, plan);
  return m;
}

PackedMatrix PackRows(const Checkpoint& checkpoint, const LinearTensors& from, int first, int rows, bool transposed,
                      PackPlan* plan) {
  PackedMatrix m;
  m.format = from.weight->dtype == DType::kF32 ? WeightFormat::kF32 : WeightFormat::kBf16;
  m.out = transposed ? from.in : rows;
  m.in = transposed ? rows : from.in;
  const size_t panel_bytes = PanelBytes(m.format, m.in);
  m.weight = plan->Add(static_cast<size_t>(m.panels()) * panel_bytes, [&checkpoint, from, first, transposed, m, panel_bytes](std::byte* out) {
    const auto columns = static_cast<size_t>(from.in);
    if (transposed) {
      std::vector<float> all(static_cast<size_t>(m.in) * columns);
      if (Status read = checkpoint.ReadRows(*from.weight, from.scales, first, m.in, all.data()); !read.ok()) return read;
      for (int o = 0; o < m.out; ++o) {
        PutOutput(&all[static_cast<size_t>(o)], from.in, m.in, m.format, o % kPanel, out + static_cast<size_t>(o / kPanel) * panel_bytes);
      }
      return Status::Ok();
    }
    std::vector<float> some(kPanel * columns);
    for (int o = 0; o < m.out; o += kPanel) {
      const int count = std::min(kPanel, m.out - o);
      if (Status read = checkpoint.ReadRows(*from.weight, from.scales, first + o, count, some.data()); !read.ok()) return read;
      for (int lane = 0; lane < count; ++lane) {
        PutOutput(&some[static_cast<size_t>(lane) * columns], 1, m.in, m.format, lane, out + static_cast<size_t>(o / kPanel) * panel_bytes);
      }
    }
    return Status::Ok();
  });
  return m;
}

size_t PackVector(const Checkpoint& checkpoint, const Tensor& tensor, float factor, PackPlan* plan) {
  const auto count = static_cast<size_t>(tensor.shape.back());
  return plan->Add(count * sizeof(float), [&checkpoint, &tensor, factor, count](std::byte* out) {
    auto* values = reinterpret_cast<float*>(out);
    if (Status read = checkpoint.ReadRows(tensor, nullptr, 0, 1, values); !read.ok()) return read;
    for (size_t i = 0; i < count; ++i) values[i] *= factor;
    return Status::Ok();
  });
}

size_t PackTable(const Checkpoint& checkpoint, const Tensor& tensor, PackPlan* plan) {
  return plan->Add(tensor.bytes, [&checkpoint, &tensor](std::byte* out) {
    const int64_t columns = tensor.shape.back();
    std::vector<float> row(static_cast<size_t>(columns));
    const auto bytes = static_cast<size_t>(columns) * (tensor.dtype == DType::kF32 ? 4 : 2);
    for (int64_t r = 0; r < tensor.shape.front(); ++r, out += bytes) {
      if (Status read = checkpoint.ReadRows(tensor, nullptr, r, 1, row.data()); !read.ok()) return read;
      if (tensor.dtype == DType::kF32) {
        std::memcpy(out, row.data(), bytes);
        continue;
      }
      for (int64_t c = 0; c < columns; ++c) reinterpret_cast<uint16_t*>(out)[c] = FloatToBf16(row[static_cast<size_t>(c)]);
    }
    return Status::Ok();
  });
}

}  // namespace margay
