// step_bytes: claims about the bytes that benchmarks take a step to read, held against what models of such shapes hold.
#include <cmath>
#include <string>

#include "claim.h"
#include "frame/synthetic.h"
#include "model/model.h"

namespace margay::bench {
namespace {

struct Format {
  const char* name;
  DType dtype;
  WeightChoice weights;
  double bytes;
};
constexpr Format kFormats[] = {{"bf16", DType::kBf16, WeightChoice::kCheckpoint, 2},
                               {"fp8", DType::kFp8, WeightChoice::kCheckpoint, 1},
                               {"int8", DType::kBf16, WeightChoice::kInt8, 1}};

ModelShape Small() {
  return {.name = "small", .layers = 1, .hidden = 1024, .heads = 8, .q_lora = 256, .kv_lora = 256, .nope = 64, .rope = 32, .v_head = 64,
          .ffn = 1024, .expert_ffn = 512, .experts = 4, .zero_experts = 8, .topk = 4, .vocabulary = 1024};
}

// Bytes of a model's weights that a step of decoding may read: all but the embedding, of which it reads some rows, and the
// other form of the absorbed ones, which prompts take.
Result<double> Held(const ModelShape& shape, const Format& format, ThreadPool* pool) {
  const SyntheticCheckpoint checkpoint(shape, format.dtype, pool);
  ModelOptions options;
  options.folder = checkpoint.folder();
  options.threads = 1;
  options.weights = format.weights;
  options.max_rows = 16;
  Result<std::unique_ptr<Model>> model = Model::Load(options);
  if (!model.ok()) return model.status();
  return static_cast<double>((*model)->facts().weight_bytes) - (shape.HeadParameters() + shape.AbsorbedParameters()) * 2;
}

void Near(const std::string& what, double counted, double held, Finding* found) {
  found->Expect(std::fabs(counted - held) < 0.01 * held, what + ": " + std::to_string(counted) + " counted, " + std::to_string(held) + " held");
}

std::string Weights(const Format& format, ThreadPool* pool) {
  Finding found;
  const ModelShape shape = Small();
  Result<double> held = Held(shape, format, pool);
  if (!held.ok()) return held.status().message();
  Near("all experts", StepBytes(shape, format.bytes, shape.experts, 0), *held, &found);
  if (format.weights != WeightChoice::kCheckpoint) return found.what();
  // The same with one thing larger: what it adds is counted by itself.
  const auto grown = [&](const char* what, void (*grow)(ModelShape*)) {
    ModelShape larger = shape;
    grow(&larger);
    Result<double> more = Held(larger, format, pool);
    if (!more.ok()) return found.Expect(false, more.status().message());
    Near(what, StepBytes(larger, format.bytes, larger.experts, 0) - StepBytes(shape, format.bytes, shape.experts, 0), *more - *held, &found);
  };
  grown("two more experts", [](ModelShape* s) { s->experts += 2; });
  grown("another layer", [](ModelShape* s) { ++s->layers; });
  grown("a wider feed-forward part", [](ModelShape* s) { s->ffn += 512; });
  grown("more heads", [](ModelShape* s) { s->heads += 4; });
  found.Same("what an expert that is not read saves", StepBytes(shape, format.bytes, 3, 0),
             StepBytes(shape, format.bytes, 4, 0) - shape.layers * 3.0 * shape.hidden * shape.expert_ffn * format.bytes);
  return found.what();
}

std::string Context(ThreadPool* pool) {
  const ModelShape shape = Small();
  const SyntheticCheckpoint checkpoint(shape, DType::kBf16, pool);
  ModelOptions options;
  options.folder = checkpoint.folder();
  options.threads = 1;
  Result<std::unique_ptr<Model>> model = Model::Load(options);
  if (!model.ok()) return model.status().message();
  const KvLayout& layout = (*model)->facts().kv;
  Finding found;
  found.Same("bytes of 100 rows", StepBytes(shape, 2, 1, 100) - StepBytes(shape, 2, 1, 0),
             100.0 * static_cast<double>(layout.row_bytes()) * layout.attentions);
  return found.what();
}

}  // namespace
}  // namespace margay::bench

int main() {
  margay::Claims claims;
  margay::ThreadPool pool(1);
  for (const auto& format : margay::bench::kFormats) {
    claims.Check(std::string(format.name) + ": a step reads what the model holds, part by part", margay::bench::Weights(format, &pool));
  }
  claims.Check("its context is the rows that the pool holds", margay::bench::Context(&pool));
  return claims.ExitCode();
}
