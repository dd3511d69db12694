// step_times FOLDER [THREADS] [PATH]: times steps of `ref` and every cpu code path and prints one JSON line per shape,
// medians in milliseconds. It measures the engine's compute alone: no sampling, no transfer, tokens from a fixed seed.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "golden_file.h"
#include "model/model.h"

namespace margay::tests {
namespace {

struct Shape {
  const char* name;
  int sequences;
  int rows;     // per sequence
  int context;  // rows in the pool before
};

double Median(Model* model, const Shape& shape, int repeats) {
  const ModelFacts& facts = model->facts();
  const int blocks_each = (shape.context + shape.rows + kBlockTokens - 1) / kBlockTokens;
  const int blocks = blocks_each * shape.sequences;
  std::vector<std::byte> pool(facts.kv.block_bytes() * static_cast<size_t>(blocks));
  const KvMemory kv{pool.data(), facts.kv, blocks};
  std::vector<int32_t> table(static_cast<size_t>(blocks));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  std::vector<int32_t> tokens(static_cast<size_t>(shape.sequences * shape.rows));
  uint32_t random = 1;
  for (auto& token : tokens) token = static_cast<int32_t>((random = random * 1664525 + 1013904223) >> 8) % facts.vocab_size;
  std::vector<SequenceRows> rows;
  for (int i = 0; i < shape.sequences; ++i) {
    rows.push_back({&tokens[static_cast<size_t>(i * shape.rows)], shape.rows, shape.context, &table[static_cast<size_t>(i * blocks_each)], 1});
  }
  std::vector<float> logits(static_cast<size_t>(shape.sequences) * static_cast<size_t>(facts.vocab_size));
  std::vector<double> times;
  for (int i = 0; i < repeats + 3; ++i) {
    const auto start = std::chrono::steady_clock::now();
    OrDie(model->Forward(rows, kv, nullptr, logits.data()));
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    if (i >= 3) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

int Main(const std::string& folder, int threads, const std::string& only) {
  std::vector<std::string> paths = {"ref"};
  for (const std::string& isa : CpuIsas()) paths.push_back(isa);
  const Shape shapes[] = {{"decode-1", 1, 1, 100},   {"decode-1-long", 1, 1, 1200}, {"decode-16", 16, 1, 100},
                          {"decode-16-long", 16, 1, 1200}, {"prefill-256", 1, 256, 0},    {"prefill-256-long", 1, 256, 1000}};
  for (const std::string& path : paths) {
    if (!only.empty() && path != only) continue;
    ModelOptions options;
    options.folder = folder;
    options.backend = path == "ref" ? BackendKind::kRef : BackendKind::kCpu;
    options.isa = path == "ref" ? "" : path;
    options.threads = threads;
    const std::unique_ptr<Model> model = OrDie(Model::Load(options));
    for (const Shape& shape : shapes) {
      const int repeats = path == "ref" ? 15 : 101;
      std::printf("{\"path\":\"%s\",\"threads\":%d,\"shape\":\"%s\",\"ms\":%.3f}\n", path.c_str(), model->facts().threads, shape.name,
                  Median(model.get(), shape, repeats));
      std::fflush(stdout);
    }
  }
  return 0;
}

}  // namespace
}  // namespace margay::tests

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: step_times FOLDER [THREADS] [PATH]\n");
    return 2;
  }
  return margay::tests::Main(argv[1], argc > 2 ? std::atoi(argv[2]) : 0, argc > 3 ? argv[3] : "");
}
