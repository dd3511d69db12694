// int8_weights FOLDER GOLDEN: what int8 weights cost in precision. Prints one JSON line per code path:
//   nmse, plain_nmse   squared error of all recorded logits over their variance, with int8 weights and with the checkpoint's
//   same_top           share of positions with the recorded arg-max
//   share              packed bytes over those of the checkpoint's precision
//   other_hash         KV pages of one are refused by the other
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "golden_file.h"
#include "model/model.h"

namespace margay::tests {
namespace {

struct Error {
  double squares = 0;
  double variance = 0;
  int same_top = 0;
  int positions = 0;
};

void AddRow(const float* got, const float* want, size_t vocab, Error* error) {
  double mean = 0;
  for (size_t i = 0; i < vocab; ++i) mean += want[i] / static_cast<double>(vocab);
  for (size_t i = 0; i < vocab; ++i) {
    error->squares += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    error->variance += (want[i] - mean) * (want[i] - mean);
  }
  error->same_top += std::max_element(got, got + vocab) - got == std::max_element(want, want + vocab) - want ? 1 : 0;
  ++error->positions;
}

Error Run(Model* model, const GoldenFile& golden) {
  Error error;
  const auto vocab = static_cast<size_t>(model->facts().vocab_size);
  for (int i = 0; golden.Has("case" + std::to_string(i) + ".tokens"); ++i) {
    std::vector<int64_t> shape;
    const std::string stem = "case" + std::to_string(i);
    const auto tokens = golden.Read<int32_t>(stem + ".tokens", &shape);
    const auto want = golden.Read<float>(stem + ".logits", &shape);
    const auto rows = static_cast<int>(shape[0]);
    std::vector<int32_t> table((tokens.size() + kBlockTokens - 1) / kBlockTokens);
    for (size_t b = 0; b < table.size(); ++b) table[b] = static_cast<int32_t>(b);
    std::vector<std::byte> pool(model->facts().kv.block_bytes() * table.size());
    const KvMemory kv{pool.data(), model->facts().kv, static_cast<int>(table.size())};
    std::vector<float> logits(static_cast<size_t>(rows) * vocab);
    const SequenceRows sequence{tokens.data(), static_cast<int>(tokens.size()), 0, table.data(), rows};
    OrDie(model->Forward({&sequence, 1}, kv, nullptr, logits.data()));
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) AddRow(&logits[row * vocab], &want[row * vocab], vocab, &error);
  }
  return error;
}

int Main(const std::string& folder, const std::string& golden_path) {
  const GoldenFile golden(golden_path);
  for (const std::string& isa : CpuIsas()) {
    ModelOptions options;
    options.folder = folder;
    options.isa = isa;
    const std::unique_ptr<Model> plain = OrDie(Model::Load(options));
    options.weights = WeightChoice::kInt8;
    const std::unique_ptr<Model> model = OrDie(Model::Load(options));
    const Error error = Run(model.get(), golden);
    const Error before = Run(plain.get(), golden);
    std::printf("{\"path\":\"%s\",\"positions\":%d,\"nmse\":%g,\"plain_nmse\":%g,\"same_top\":%g,\"share\":%g,\"other_hash\":%s}\n",
                isa.c_str(), error.positions, error.squares / error.variance, before.squares / before.variance,
                static_cast<double>(error.same_top) / error.positions,
                static_cast<double>(model->facts().weight_bytes) / static_cast<double>(plain->facts().weight_bytes),
                model->facts().model_hash == plain->facts().model_hash ? "false" : "true");
  }
  return 0;
}

}  // namespace
}  // namespace margay::tests

int main(int argc, char** argv) { return argc == 3 ? margay::tests::Main(argv[1], argv[2]) : 2; }
