// weights FOLDER PACKED|- [ref|cpu [EPS]]: loads a checkpoint and prints one JSON line with what came of it, and the bits of
// the logits of a few tokens as one hash.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "core/sha256.h"
#include "model/model.h"

namespace margay::tests {
namespace {

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

std::string LogitsHash(Model* model) {
  const ModelFacts& facts = model->facts();
  std::vector<std::byte> pool(facts.kv.block_bytes());
  const int32_t tokens[] = {5, 9, 4, 7, 5};
  const int32_t table[] = {0};
  const SequenceRows rows{tokens, 5, 0, table, 5};
  std::vector<float> logits(5 * static_cast<size_t>(facts.vocab_size));
  if (!model->Forward({&rows, 1}, {pool.data(), facts.kv, 1}, nullptr, logits.data()).ok()) return "failed";
  return Hex(Sha256::Of(logits.data(), logits.size() * sizeof(float)));
}

int Main(const std::string& folder, const std::string& packed, const std::string& backend, float eps) {
  ModelOptions options;
  options.folder = folder;
  options.packed_folder = packed == "-" ? "" : packed;
  options.backend = backend == "ref" ? BackendKind::kRef : BackendKind::kCpu;
  options.latent_norm_eps = eps;
  Result<std::unique_ptr<Model>> model = Model::Load(options);
  if (!model.ok()) {
    std::printf("{\"ok\":false,\"code\":\"%s\",\"message\":%s}\n", CodeName(model.status().code()),
                Quoted(model.status().message()).c_str());
    return 0;
  }
  const ModelFacts& facts = (*model)->facts();
  std::string warnings;
  for (const std::string& warning : facts.warnings) warnings.append(warnings.empty() ? "" : ",").append(Quoted(warning));
  std::string eos;
  for (const int32_t token : facts.eos_tokens) eos.append(eos.empty() ? "" : ",").append(std::to_string(token));
  std::printf("{\"ok\":true,\"hash\":\"%s\",\"hit\":%s,\"bytes\":%llu,\"layout\":\"%s\",\"eos\":[%s],\"warnings\":[%s],\"logits\":\"%s\"}\n",
              facts.model_hash.c_str(), facts.packed_hit ? "true" : "false",
              static_cast<unsigned long long>(facts.weight_bytes), facts.kv.Spell().c_str(), eos.c_str(), warnings.c_str(),
              LogitsHash(model->get()).c_str());
  return 0;
}

}  // namespace
}  // namespace margay::tests

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: weights FOLDER PACKED|- [ref|cpu [EPS]]\n");
    return 2;
  }
  return margay::tests::Main(argv[1], argv[2], argc > 3 ? argv[3] : "cpu", argc > 4 ? std::strtof(argv[4], nullptr) : -1);
}
