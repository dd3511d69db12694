#include "model/packed_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/number_formats.h"
#include "kernels/linear/panel_layout.h"
#include "kernels/linear/panel_rows.h"

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

// Source bytes of one piece of a part: enough to pay for its beginning, few enough to share out.
constexpr size_t kPieceBytes = size_t{2} << 20;

Status NotFinite(const Tensor& tensor, uint64_t element) {
  return Status(Code::kCheckpoint,
                "tensor " + tensor.name + " holds a value that is not finite, at element " + std::to_string(element));
}

// All ones in the exponent, or e4m3's only code for it: not a number, or infinite.
template <typename Word>
Status AllFinite(const Tensor& tensor, uint64_t first, const Word* values, size_t count, Word mask) {
  Word any = 0;
  const Word step = static_cast<Word>(mask & (~mask + 1u));  // the mask's lowest bit: all ones carry into the bit above
  for (size_t i = 0; i < count; ++i) any = static_cast<Word>(any | ((values[i] & mask) + step));
  const auto above = static_cast<Word>(Word{1} << (sizeof(Word) * 8 - 1));
  if ((any & above) == 0) return Status::Ok();
  const Word* bad = std::find_if(values, values + count, [&](Word value) { return (value & mask) == mask; });
  return NotFinite(tensor, first + static_cast<uint64_t>(bad - values));
}

Status AllFinite(const Tensor& tensor, uint64_t first, const std::byte* values, size_t count) {
  const auto check = [&](auto mask) {
    return AllFinite(tensor, first, reinterpret_cast<const decltype(mask)*>(values), count, mask);
  };
  if (tensor.dtype == DType::kF32) return check(uint32_t{0x7f800000});
  if (tensor.dtype == DType::kBf16) return check(uint16_t{0x7f80});
  return check(uint8_t{0x7f});
}

size_t Width(DType dtype) { return dtype == DType::kF32 ? 4 : dtype == DType::kBf16 ? 2 : 1; }

// Rows of the checkpoint as they are stored, some panels of them, into their places.
Status PutPanels(const Checkpoint& checkpoint, const Tensor& tensor, const PackedMatrix& m, int first_row, int panel,
                 int panels, std::byte* out) {
  const size_t width = Width(tensor.dtype);
  const size_t row_bytes = static_cast<size_t>(m.in) * width;
  const auto row_values = static_cast<uint64_t>(m.in);
  // One panel at a time, so that what was read is still in the core's cache when it is looked at and moved.
  const std::unique_ptr<std::byte[]> source(new std::byte[kPanel * row_bytes]);
  const int end = std::min(m.panels(), panel + panels);
  for (; panel < end; ++panel) {
    const int first = panel * kPanel;
    const auto count = static_cast<size_t>(std::min(kPanel, m.out - first));
    const uint64_t element = (static_cast<uint64_t>(first_row) + static_cast<uint64_t>(first)) * row_values;
    if (Status read = checkpoint.Read(tensor, element * width, source.get(), count * row_bytes); !read.ok()) return read;
    if (Status finite = AllFinite(tensor, element, source.get(), count * row_values); !finite.ok()) return finite;
    std::byte* to = out + static_cast<size_t>(panel) * PanelBytes(m.format, m.in);
    if (m.format == WeightFormat::kFp8) {
      InterleaveFp8(source.get(), count, row_values, to);
    } else {
      InterleaveWords(source.get(), count, row_bytes / 4, to);
    }
  }
  return Status::Ok();
}

// A matrix whose words keep their order: what most of a checkpoint is.
size_t AddPanels(const Checkpoint& checkpoint, const Tensor& tensor, const PackedMatrix& m, int first_row, PackPlan* plan) {
  const size_t panel_source = static_cast<size_t>(m.in) * Width(tensor.dtype) * kPanel;
  const int each = static_cast<int>(std::max<size_t>(1, kPieceBytes / panel_source));
  return plan->AddPieces(static_cast<size_t>(m.panels()) * PanelBytes(m.format, m.in), (m.panels() + each - 1) / each,
                         [&checkpoint, &tensor, m, first_row, each](std::byte* out, int piece) {
                           return PutPanels(checkpoint, tensor, m, first_row, piece * each, each, out);
                         });
}

// Panels, then the scales of their outputs. Stored values are 128 higher; outputs that fill up a panel are zeros.
Status PutInt8(const Checkpoint& checkpoint, const LinearTensors& from, size_t panel_bytes, std::byte* out) {
  const auto in = static_cast<size_t>(from.in);
  const int panels = (from.out + kPanel - 1) / kPanel;
  auto* scales = reinterpret_cast<float*>(out + static_cast<size_t>(panels) * panel_bytes);
  std::vector<float> rows(in * kPanel);
  for (int panel = 0; panel < panels; ++panel, out += panel_bytes) {
    const int count = std::min(kPanel, from.out - panel * kPanel);
    if (Status read = checkpoint.ReadRows(*from.weight, from.scales, int64_t{panel} * kPanel, count, rows.data()); !read.ok()) return read;
    std::memset(out, 128, panel_bytes);
    for (int lane = 0; lane < count; ++lane) {
      const float* row = &rows[static_cast<size_t>(lane) * in];
      float top = 0;
      for (size_t k = 0; k < in; ++k) top = std::max(top, std::fabs(row[k]));
      scales[panel * kPanel + lane] = top / 127;
      if (top == 0) continue;
      for (size_t k = 0; k < in; ++k) {
        const auto value = static_cast<int>(std::nearbyint(row[k] / top * 127));
        out[WeightOffset(WeightFormat::kInt8, lane, static_cast<int>(k))] = static_cast<std::byte>(value + 128);
      }
    }
  }
  return Status::Ok();
}

}  // namespace

PackedMatrix PackInt8(const Checkpoint& checkpoint, const LinearTensors& from, PackPlan* plan) {
  PackedMatrix m{WeightFormat::kInt8, from.out, from.in, 0, 0, 0, false};
  const size_t panel_bytes = PanelBytes(m.format, m.in);
  const size_t bytes = static_cast<size_t>(m.panels()) * panel_bytes;
  m.weight = plan->Add(bytes + static_cast<size_t>(m.panels()) * kPanel * sizeof(float),
                       [&checkpoint, from, panel_bytes](std::byte* out) { return PutInt8(checkpoint, from, panel_bytes, out); });
  m.scales = m.weight + bytes;
  m.has_bias = from.bias != nullptr;
  if (m.has_bias) m.bias = PackVector(checkpoint, *from.bias, 1, plan);
  return m;
}

PackedMatrix PackLinear(const Checkpoint& checkpoint, const LinearTensors& from, PackPlan* plan) {
  PackedMatrix m;
  if (from.weight->dtype == DType::kFp8) {
    m = {WeightFormat::kFp8, from.out, from.in, 0, 0, 0, false};
    m.weight = AddPanels(checkpoint, *from.weight, m, 0, plan);
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
  const bool pairs = from.weight->dtype == DType::kBf16 && m.in % 2 == 0;
  if (!transposed && (pairs || from.weight->dtype == DType::kF32)) {
    m.weight = AddPanels(checkpoint, *from.weight, m, first, plan);
    return m;
  }
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
  const int pieces = static_cast<int>((tensor.bytes + kPieceBytes - 1) / kPieceBytes);
  return plan->AddPieces(tensor.bytes, pieces, [&checkpoint, &tensor](std::byte* out, int piece) {
    const uint64_t first = static_cast<uint64_t>(piece) * kPieceBytes;
    const size_t bytes = std::min<uint64_t>(kPieceBytes, tensor.bytes - first);
    if (Status read = checkpoint.Read(tensor, first, out + first, bytes); !read.ok()) return read;
    const size_t width = Width(tensor.dtype);
    return AllFinite(tensor, first / width, out + first, bytes / width);
  });
}

}  // namespace margay
