// packing: a checkpoint in the page cache becomes packed weights: in private memory, and in a file that other processes
// map. The file lies in memory too (/dev/shm): how fast a disk takes it in is the disk's affair. What is counted are the
// bytes of the checkpoint's tensors. The rivals say what the machine allows: as many bytes are merely copied into fresh
// memory, or written into a fresh file, by all threads out of a buffer that stays in the cache.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "frame.h"
#include "frame/synthetic.h"
#include "model/cpu/cpu_weights.h"
#include "model/model_config.h"
#include "model/model_tensors.h"
#include "weights/packed_weights.h"

namespace margay::bench {
namespace {

template <typename T>
T OrDie(Result<T> result) {
  if (result.ok()) return std::move(result.value());
  std::fprintf(stderr, "%s\n", result.status().message().c_str());
  std::exit(1);
}

// One layer of LongCat's width, 0.7 GB in bf16.
ModelShape Narrow() {
  ModelShape shape;
  shape.name = "packing";
  shape.ffn = 4096;
  shape.experts = 2;
  shape.topk = 2;
  return shape;
}

std::string Key(int64_t run) {
  std::string digits = std::to_string(run);
  return std::string(64 - digits.size(), '0') + digits;
}

// A folder in memory that is removed with all that is in it.
class Folder {
 public:
  Folder() {
    const std::string in = std::filesystem::exists("/dev/shm") ? "/dev/shm" : std::filesystem::temp_directory_path().string();
    path_ = in + "/margay-packing-XXXXXX";
    if (mkdtemp(path_.data()) == nullptr) {
      std::perror("a benchmark gets no folder");
      std::exit(1);
    }
  }
  ~Folder() { Empty(); std::filesystem::remove(path_); }
  void Empty() const {
    for (const auto& entry : std::filesystem::directory_iterator(path_)) std::filesystem::remove(entry.path());
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

double TensorBytes(const Checkpoint& checkpoint) {
  double bytes = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) bytes += static_cast<double>(tensor.bytes);
  return bytes;
}

constexpr size_t kCopied = size_t{1} << 20;

// Puts `bytes` bytes somewhere in pieces: put(offset, piece).
template <typename Put>
void PutPieces(size_t bytes, ThreadPool* pool, Put put) {
  static const std::vector<std::byte> kPiece(kCopied);
  pool->Run(static_cast<int>(bytes / kCopied), [&](int item, int) { put(static_cast<size_t>(item) * kCopied, kPiece.data()); });
}

Mapping CopyIntoFreshMemory(size_t bytes, ThreadPool* pool) {
  Mapping memory = OrDie(Mapping::Anonymous(bytes));
  madvise(memory.data(), bytes, MADV_HUGEPAGE);
  PutPieces(bytes, pool, [&](size_t at, const std::byte* piece) { std::memcpy(memory.data() + at, piece, kCopied); });
  return memory;
}

void WriteIntoFreshFile(size_t bytes, const std::string& path, ThreadPool* pool) {
  const File file = OrDie(File::Create(path));
  PutPieces(bytes, pool, [&](size_t at, const std::byte* piece) {
    if (pwrite(file.fd(), piece, kCopied, static_cast<off_t>(at)) != static_cast<ssize_t>(kCopied)) std::exit(1);
  });
}

void MeasureFormat(Bench* bench, const std::string& format, DType weights) {
  const SyntheticCheckpoint made(Narrow(), weights, bench->pool(bench->all_threads()));
  const Checkpoint checkpoint = OrDie(Checkpoint::Open(made.folder()));
  const ModelConfig config = OrDie(ParseModelConfig(checkpoint.config(), checkpoint.generation_config()));
  const ModelTensors tensors = OrDie(FindModelTensors(checkpoint, config));
  CpuWeights layout(config, WeightChoice::kCheckpoint);
  PackPlan plan;
  layout.Plan(checkpoint, tensors, &plan);
  const Folder folder;
  const double bytes = TensorBytes(checkpoint);
  const auto measure = [&](const std::string& name, int threads, bool copies, const Promise& promise, const Run& run,
                           const std::vector<Rival>& rivals = {}, const std::function<void()>& clear = {}) {
    bench->Measure({.table = "packing",
                    .name = format + ", " + name,
                    .path = "any",
                    .threads = threads,
                    .copied_bytes = copies ? bytes : 0,
                    .unit = copies ? "GB/s" : "us",
                    .units = copies ? bytes / 1e9 : 1,
                    .promise = promise,
                    .run = run,
                    .clear = clear,
                    .rivals = rivals});
  };
  ThreadPool* pool = bench->pool(bench->all_threads());
  // A process keeps what it packed: giving it back is no part of packing.
  PackedWeights made_now;
  Mapping copied;
  const auto forget = [&] {
    made_now = PackedWeights();
    copied = Mapping();
    folder.Empty();
  };
  measure("into memory", bench->all_threads(), true, ValueAtLeast(3, 6),
          [&](int64_t) { made_now = OrDie(PackedWeights::Materialise(plan, "", Key(0), pool)); },
          {{"copied into fresh memory", [&](int64_t) { copied = CopyIntoFreshMemory(plan.bytes(), pool); }, forget}}, forget);
  measure("into a file", bench->all_threads(), true, ValueAtLeast(3, 6),
          [&](int64_t run) { made_now = OrDie(PackedWeights::Materialise(plan, folder.path(), Key(run), pool)); },
          {{"written into a fresh file", [&](int64_t) { WriteIntoFreshFile(plan.bytes(), folder.path() + "/plain", pool); }, forget}}, forget);
  OrDie(PackedWeights::Materialise(plan, folder.path(), Key(0), pool));
  measure("mapping the file of another process", 1, false, ValueAtMost(200e3, 20e3), [&](int64_t) {
    if (!OrDie(PackedWeights::Materialise(plan, folder.path(), Key(0), pool)).hit()) std::exit(1);
  });
}

void Main(int argc, char** argv) {
  Bench bench(argc, argv);
  if (!bench.WantsTable("packing")) return;
  MeasureFormat(&bench, "bf16", DType::kBf16);
  MeasureFormat(&bench, "fp8", DType::kFp8);
}

}  // namespace
}  // namespace margay::bench

int main(int argc, char** argv) {
  margay::bench::Main(argc, argv);
  return 0;
}
