// forced_routing FOLDER: prescribes extreme expert choices and compares every cpu code path with ref, one JSON line each:
// all tokens on identity experts, all tokens on the same few experts (the others empty), every token elsewhere.
#include <cmath>
#include <cstring>

#include "core/file.h"
#include "golden_file.h"
#include "model/model.h"
#include "model/model_config.h"

namespace margay::tests {
namespace {

constexpr int kRows = 37;

std::vector<int32_t> Choices(const std::string& name, const ModelConfig& c) {
  std::vector<int32_t> ids;
  for (int layer = 0; layer < c.layers; ++layer) {
    for (int row = 0; row < kRows; ++row) {
      for (int k = 0; k < c.topk; ++k) {
        if (name == "identity") ids.push_back(c.experts + (row + k) % c.zero_experts);
        if (name == "same") ids.push_back((c.experts - 1 - k + c.slots()) % c.slots());
        if (name == "spread") ids.push_back((row * 3 + layer + k) % c.slots());
      }
    }
  }
  return ids;
}

std::vector<float> Run(Model* model, const std::vector<int32_t>& ids) {
  const ModelFacts& facts = model->facts();
  std::vector<std::byte> pool(facts.kv.block_bytes());
  int32_t tokens[kRows];
  for (int i = 0; i < kRows; ++i) tokens[i] = (i * 29 + 5) % facts.vocab_size;
  const int32_t table[] = {0};
  const SequenceRows rows{tokens, kRows, 0, table, kRows};
  std::vector<float> logits(kRows * static_cast<size_t>(facts.vocab_size));
  model->ForceRouting(&ids, nullptr);
  OrDie(model->Forward({&rows, 1}, {pool.data(), facts.kv, 1}, nullptr, logits.data()));
  return logits;
}

int Main(const std::string& folder) {
  const ModelConfig config = OrDie(ParseModelConfig(OrDie(ReadText(folder + "/config.json", 1 << 20)), ""));
  ModelOptions options;
  options.folder = folder;
  options.backend = BackendKind::kRef;
  const auto ref = OrDie(Model::Load(options));
  options.backend = BackendKind::kCpu;
  for (const std::string& isa : CpuIsas()) {
    options.isa = isa;
    const auto model = OrDie(Model::Load(options));
    for (const char* name : {"identity", "same", "spread"}) {
      if (std::strcmp(name, "identity") == 0 && config.zero_experts == 0) continue;
      const std::vector<int32_t> ids = Choices(name, config);
      const std::vector<float> want = Run(ref.get(), ids);
      const std::vector<float> got = Run(model.get(), ids);
      float worst = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        const float diff = std::fabs(got[i] - want[i]);
        worst = std::isnan(diff) ? 1e30F : std::fmax(worst, diff);
      }
      std::printf("{\"path\":\"%s\",\"routing\":\"%s\",\"max_diff\":%g}\n", isa.c_str(), name, static_cast<double>(worst));
    }
  }
  return 0;
}

}  // namespace
}  // namespace margay::tests

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: forced_routing FOLDER\n");
    return 2;
  }
  return margay::tests::Main(argv[1]);
}
