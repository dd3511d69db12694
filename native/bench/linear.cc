// linear: matrix products of the shapes of LongCat's experts, weights from memory that no cache holds.
#include <optional>
#include <string>
#include <vector>

#include "frame.h"
#include "kernels/code_path.h"
#include "kernels/linear/matmul_list.h"
#include "kernels/linear/panel_layout.h"

namespace margay::bench {
namespace {

constexpr int kOut = 2048;
constexpr int kIn = 6144;

const char* NameOf(WeightFormat format) {
  constexpr const char* kNames[] = {"bf16", "f32", "fp8", "int8"};
  return kNames[static_cast<size_t>(format)];
}

// Enough copies of one matrix for every run to find its weights cold: normal values in bf16, in the other formats all
// codes alike but those of not-a-number.
class ColdWeights {
 public:
  ColdWeights(WeightFormat format, ThreadPool* pool)
      : format_(format),
        bytes_(PanelBytes(format, kIn) * (kOut / kPanel)),
        copies_(ColdCopies(bytes_)),
        memory_(static_cast<size_t>(copies_) * bytes_),
        scales_(kOut, 0.01F) {
    if (format == WeightFormat::kBf16) {
      FillNormalBf16({memory_.as<uint16_t>(), memory_.bytes() / 2}, 0.02F, 1, pool);
      return;
    }
    auto* codes = memory_.as<uint8_t>();
    uint64_t state = 7;
    for (size_t i = 0; i < memory_.bytes(); ++i) {
      state = state * 6364136223846793005 + 1442695040888963407;
      const auto code = static_cast<uint8_t>(state >> 56);
      codes[i] = (code & 0x7fU) == 0x7fU ? uint8_t{0x7e} : code;
    }
  }
  MatmulWeights Of(int64_t run) const {
    return {format_, kOut, kIn, memory_.data() + static_cast<size_t>(run % copies_) * bytes_, scales_.data(), nullptr};
  }
  double bytes() const { return static_cast<double>(bytes_); }

 private:
  WeightFormat format_;
  size_t bytes_;
  int copies_;
  Buffer memory_;
  std::vector<float> scales_;
};

// Of fp8 with several rows nothing is promised, nor of int8.
std::optional<Promise> Promised(WeightFormat format, int rows, const std::string& path) {
  if (format == WeightFormat::kFp8) return rows == 1 ? std::optional(ShareOfLimit(0.75, 0.88)) : std::nullopt;
  if (format == WeightFormat::kInt8 && rows > 1) return std::nullopt;
  if (rows == 1) return ShareOfLimit(0.92, 0.97);
  if (rows <= 16) return ShareOfLimit(0.88, 0.95);
  return path.find("amx") != std::string::npos ? ShareOfLimit(0.40, 0.55) : ShareOfLimit(0.70, 0.85);
}

void Main(int argc, char** argv) {
  Bench bench(argc, argv);
  std::vector<float> x(size_t{512} * kIn);
  std::vector<float> y(size_t{512} * kOut);
  FillNormal(x, 1, 2);
  const CodePath path = UsableCodePaths().back();
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8, WeightFormat::kInt8}) {
    const bool dot = path.linear->formats[static_cast<size_t>(format)].activations == Activations::kInt8;
    const std::string name = dot ? "avx512vnni" : path.name;
    if (!bench.Wants("linear", name)) continue;
    const ColdWeights weights(format, bench.pool(bench.all_threads()));
    for (const int threads : bench.threads()) {
      MatmulList list(path.linear, path.pointwise, bench.pool(threads), 1);
      for (const int rows : {1, 2, 4, 8, 16, 64, 256, 512}) {
        bench.Measure({.table = "linear",
                       .name = std::string(NameOf(format)) + " 2048 x 6144, " + std::to_string(rows) + (rows == 1 ? " row" : " rows"),
                       .path = name,
                       .threads = threads,
                       .bytes = weights.bytes(),
                       .operations = 2.0 * kOut * kIn * rows,
                       .arithmetic = dot ? Arithmetic::kInt8 : Arithmetic::kFloat,
                       .unit = rows <= 16 ? "GB/s" : "GFLOP/s",
                       .units = (rows <= 16 ? weights.bytes() : 2.0 * rows * kOut * kIn) / 1e9,
                       .promise = Promised(format, rows, path.name),
                       .run = [&](int64_t run) {
                         const MatmulJob job{.w = weights.Of(run), .x = x.data(), .x_stride = kIn, .rows = rows, .y = y.data(), .y_stride = kOut};
                         list.Run({&job, 1});
                       }});
      }
    }
  }
}

}  // namespace
}  // namespace margay::bench

int main(int argc, char** argv) {
  margay::bench::Main(argc, argv);
  return 0;
}
