// linear: matrix products of the shapes of LongCat's experts, weights from memory that no cache holds.
#include <string>
#include <vector>

#include "frame.h"
#include "kernels/code_path.h"
#include "kernels/linear/matmul_list.h"

namespace margay::bench {
namespace {

constexpr int kOut = 2048;
constexpr int kIn = 6144;

// Enough copies of one matrix of normal values for every run to find its weights cold.
class ColdWeights {
 public:
  explicit ColdWeights(ThreadPool* pool) : copies_(ColdCopies(kBytes)), memory_(static_cast<size_t>(copies_) * kBytes) {
    FillNormalBf16({memory_.as<uint16_t>(), memory_.bytes() / 2}, 0.02F, 1, pool);
  }
  MatmulWeights Of(int64_t run) const {
    return {WeightFormat::kBf16, kOut, kIn, memory_.data() + static_cast<size_t>(run % copies_) * kBytes, nullptr, nullptr};
  }

  static constexpr size_t kBytes = size_t{2} * kOut * kIn;

 private:
  int copies_;
  Buffer memory_;
};

Promise Promised(int rows, const std::string& path) {
  if (rows == 1) return ShareOfLimit(0.92, 0.97);
  if (rows <= 16) return ShareOfLimit(0.88, 0.95);
  return path.find("amx") != std::string::npos ? ShareOfLimit(0.40, 0.55) : ShareOfLimit(0.70, 0.85);
}

void Main(int argc, char** argv) {
  Bench bench(argc, argv);
  const ColdWeights weights(bench.pool(bench.all_threads()));
  std::vector<float> x(size_t{512} * kIn);
  std::vector<float> y(size_t{512} * kOut);
  FillNormal(x, 1, 2);
  const CodePath path = UsableCodePaths().back();
  for (const int threads : bench.threads()) {
    MatmulList list(path.linear, path.pointwise, bench.pool(threads), 1);
    for (const int rows : {1, 2, 4, 8, 16, 64, 256, 512}) {
      bench.Measure({.table = "linear",
                     .name = "bf16 2048 x 6144, " + std::to_string(rows) + (rows == 1 ? " row" : " rows"),
                     .path = path.name,
                     .threads = threads,
                     .bytes = ColdWeights::kBytes,
                     .operations = 2.0 * kOut * kIn * rows,
                     .arithmetic = Arithmetic::kFloat,
                     .unit = rows <= 16 ? "GB/s" : "GFLOP/s",
                     .units = (rows <= 16 ? 2.0 : 2.0 * rows) * kOut * kIn / 1e9,
                     .promise = Promised(rows, path.name),
                     .run = [&](int64_t run) {
                       const MatmulJob job{.w = weights.Of(run), .x = x.data(), .x_stride = kIn, .rows = rows, .y = y.data(), .y_stride = kOut};
                       list.Run({&job, 1});
                     }});
    }
  }
}

}  // namespace
}  // namespace margay::bench

int main(int argc, char** argv) {
  margay::bench::Main(argc, argv);
  return 0;
}
