// engine: whole steps of synthetic models: the layer slice, decode at several batches and prefill, per weight format, and
// a deep narrow model, where what surrounds the arithmetic shows. --peer LIBRARY MODEL runs another engine by turns.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "frame.h"
#include "frame/peer.h"
#include "frame/synthetic.h"
#include "model/model.h"

namespace margay::bench {
namespace {

constexpr int kPrompt = 512;
constexpr int kBatches[] = {1, 2, 4, 8, 16};
constexpr int kMostBatch = 16;
constexpr int kDecodeAt = 100;  // rows of context before a decoded token
constexpr int kBlocksEach = kDecodeAt / kBlockTokens + 1;

template <typename T>
T OrDie(Result<T> result) {
  if (result.ok()) return std::move(result.value());
  std::fprintf(stderr, "%s\n", result.status().message().c_str());
  std::exit(1);
}

struct Format {
  const char* name;
  DType dtype;  // of the checkpoint
  WeightChoice weights;
  Arithmetic arithmetic;
  double bytes;  // of a weight
};
constexpr Format kBf16 = {"bf16", DType::kBf16, WeightChoice::kCheckpoint, Arithmetic::kFloat, 2};
constexpr Format kFormats[] = {kBf16,
                               {"fp8", DType::kFp8, WeightChoice::kCheckpoint, Arithmetic::kFloat, 1},
                               {"int8", DType::kBf16, WeightChoice::kInt8, Arithmetic::kInt8, 1}};

// A model with pages for what is timed, and fresh tokens in every step so that experts change as they do in use.
class Subject {
 public:
  Subject(const ModelShape& shape, const Format& format, bool deterministic, ThreadPool* pool, int threads) : shape_(shape) {
    const SyntheticCheckpoint checkpoint(shape, format.dtype, pool);
    ModelOptions options;
    options.folder = checkpoint.folder();
    options.threads = threads;
    options.weights = format.weights;
    options.deterministic = deterministic;
    model_ = OrDie(Model::Load(options));
    const KvLayout& layout = model_->facts().kv;
    const int blocks = kMostBatch * kBlocksEach;
    pages_ = Buffer(layout.block_bytes() * static_cast<size_t>(blocks));
    kv_ = {pages_.data(), layout, blocks};
    for (int32_t block = 0; block < blocks; ++block) table_.push_back(block);
    logits_.resize(size_t{kPrompt} * static_cast<size_t>(shape.vocabulary));
    tokens_.resize(kPrompt);
    // Rows of context hold values, not zeros: those of one sequence serve all.
    Forward({Sequence(0, kDecodeAt, 0, 0)});
    for (int attention = 0; attention < layout.attentions; ++attention) {
      for (int block = kBlocksEach; block < blocks; ++block) {
        std::memcpy(kv_.page(attention, block), kv_.page(attention, block % kBlocksEach), layout.page_bytes());
      }
    }
  }

  const std::string& path() const { return model_->facts().isa; }

  void Decode(int batch) {
    std::vector<SequenceRows> rows;
    for (int i = 0; i < batch; ++i) rows.push_back(Sequence(i, 1, kDecodeAt, 1));
    Forward(rows);
  }

  // Logits of all tokens, as the peer computes them.
  void Prefill() { Forward({Sequence(0, kPrompt, 0, kPrompt)}); }

  // Experts that a decode step of so many sequences reads, on average per layer.
  double ExpertsRead(int batch) {
    constexpr int kSteps = 4;
    double sum = 0;
    for (int step = 0; step < kSteps; ++step) {
      std::vector<int32_t> chosen;
      model_->ForceRouting(nullptr, &chosen);
      Decode(batch);
      sum += Distinct(chosen);
    }
    model_->ForceRouting(nullptr, nullptr);
    return sum / kSteps;
  }

 private:
  // Real experts named at least once, per layer.
  double Distinct(const std::vector<int32_t>& chosen) const {
    const size_t each = chosen.size() / static_cast<size_t>(shape_.layers);
    int distinct = 0;
    for (size_t layer = 0; layer < static_cast<size_t>(shape_.layers); ++layer) {
      std::vector<bool> named(static_cast<size_t>(shape_.experts + shape_.zero_experts));
      for (size_t i = 0; i < each; ++i) named[static_cast<size_t>(chosen[layer * each + i])] = true;
      for (int e = 0; e < shape_.experts; ++e) distinct += named[static_cast<size_t>(e)] ? 1 : 0;
    }
    return static_cast<double>(distinct) / shape_.layers;
  }

  SequenceRows Sequence(int index, int count, int position, int logits_rows) {
    int32_t* tokens = &tokens_[static_cast<size_t>(count == 1 ? index : 0)];
    for (int i = 0; i < count; ++i) {
      random_ = random_ * 6364136223846793005U + 1442695040888963407U;
      tokens[i] = static_cast<int32_t>((random_ >> 33) % static_cast<uint64_t>(shape_.vocabulary));
    }
    // A long prompt takes the pages of several sequences.
    return {tokens, count, position, &table_[static_cast<size_t>(index * kBlocksEach)], logits_rows};
  }

  void Forward(const std::vector<SequenceRows>& rows) {
    const Status done = model_->Forward(rows, kv_, nullptr, logits_.data());
    if (done.ok()) return;
    std::fprintf(stderr, "%s\n", done.message().c_str());
    std::exit(1);
  }

  const ModelShape shape_;
  std::unique_ptr<Model> model_;
  Buffer pages_;
  KvMemory kv_;
  std::vector<int32_t> table_;
  std::vector<int32_t> tokens_;
  std::vector<float> logits_;
  uint64_t random_ = 1;
};

// What a decode step has to read from memory.
double DecodeBytes(const ModelShape& s, const Format& format, double experts, double batch) {
  return StepBytes(s, format.bytes, experts, batch * kDecodeAt);
}

// Multiplications and additions that one row needs.
double RowOperations(const ModelShape& s, double context) {
  const double matrices = s.AttentionParameters() + s.DenseParameters() + s.HeadParameters() + double(s.layers) * s.topk * s.ExpertParameters();
  return 2 * matrices + 2.0 * s.layers * 2 * s.heads * context * (s.nope + s.rope + s.v_head);
}

void Slice(Bench* bench, const Format& format, const Peer* peer) {
  const ModelShape shape = LayerSlice();
  const int threads = bench->all_threads();
  if (!bench->WantsTable("layer slice, decode") && !bench->WantsTable("layer slice, prefill")) return;
  Subject subject(shape, format, false, bench->pool(threads), threads);
  std::optional<Figure> alone;
  const bool bf16 = format.name == kBf16.name;
  for (const int batch : kBatches) {
    if (!bench->WantsTable("layer slice, decode")) break;
    Case c{.table = "layer slice, decode",
           .name = std::string(format.name) + ", batch " + std::to_string(batch),
           .path = subject.path(),
           .threads = threads,
           .bytes = DecodeBytes(shape, format, subject.ExpertsRead(batch), batch),
           .operations = batch * RowOperations(shape, kDecodeAt),
           .arithmetic = format.arithmetic,
           .unit = "tok/s",
           .units = static_cast<double>(batch),
           .run = [&](int64_t) { subject.Decode(batch); }};
    if (batch == 1 && bf16) c.promise = ShareOfLimit(0.85, 0.91);
    if (peer != nullptr && batch == 1 && bf16) c.rivals.push_back(peer->Decode(kDecodeAt));
    const std::optional<Figure> figure = bench->Measure(c);
    if (batch == 1) alone = figure;
    if (batch == kMostBatch && alone.has_value() && figure.has_value()) {
      bench->Print({.table = "layer slice, decode",
                    .name = std::string(format.name) + ", batch 16 against batch 1",
                    .path = subject.path(),
                    .threads = threads,
                    .unit = "x",
                    .value = SpreadOf({figure->value.median / alone->value.median}),
                    .promise = bf16 ? std::optional(ValueAtLeast(6, 10)) : std::nullopt,
                    .disturbed = figure->disturbed || alone->disturbed});
    }
  }
  Case c{.table = "layer slice, prefill",
         .name = std::string(format.name) + ", 512 tokens",
         .path = subject.path(),
         .threads = threads,
         .operations = kPrompt * RowOperations(shape, kPrompt / 2.0),
         .arithmetic = format.arithmetic,
         .unit = "tok/s",
         .units = kPrompt,
         .promise = bf16 ? std::optional(ShareOfLimit(0.7, 0.85)) : std::nullopt,
         .run = [&](int64_t) { subject.Prefill(); }};
  if (peer != nullptr && bf16) c.rivals.push_back(peer->Prefill(kPrompt));
  const std::optional<Figure> figure = bench->Measure(c);
  if (!figure.has_value()) return;
  const bool tiles = subject.path().find("amx") != std::string::npos;
  for (const auto& [name, rate] : figure->rivals) {
    bench->Print({.table = c.table,
                  .name = c.name + " against " + name,
                  .path = subject.path(),
                  .threads = threads,
                  .unit = "x",
                  .value = SpreadOf({figure->value.median / rate.median}),
                  .promise = tiles ? ValueAtLeast(10, 15) : ValueAtLeast(1, 2),
                  .disturbed = figure->disturbed});
  }
}

// What determinism costs, by turns.
void Deterministic(Bench* bench) {
  const ModelShape shape = LayerSlice();
  const int threads = bench->all_threads();
  if (!bench->WantsTable("layer slice, deterministic")) return;
  Subject usual(shape, kBf16, false, bench->pool(threads), threads);
  Subject exact(shape, kBf16, true, bench->pool(threads), threads);
  const auto measure = [&](const std::string& name, double tokens, const Run& own, const Run& other) {
    const std::optional<Figure> figure = bench->Measure({.table = "layer slice, deterministic", .name = name, .path = exact.path(),
                                                         .threads = threads, .unit = "tok/s", .units = tokens, .run = own,
                                                         .rivals = {{"usual mode", other}}});
    if (!figure.has_value()) return;
    bench->Print({.table = figure->table, .name = name + ", against the usual mode", .path = exact.path(), .threads = threads, .unit = "x",
                  .value = SpreadOf({figure->value.median / figure->rivals.begin()->second.median}), .promise = ValueAtLeast(0.3, 0.6), .disturbed = figure->disturbed});
  };
  measure("bf16, batch 1", 1, [&](int64_t) { exact.Decode(1); }, [&](int64_t) { usual.Decode(1); });
  measure("bf16, batch 16", 16, [&](int64_t) { exact.Decode(16); }, [&](int64_t) { usual.Decode(16); });
  measure("bf16, prefill 512", kPrompt, [&](int64_t) { exact.Prefill(); }, [&](int64_t) { usual.Prefill(); });
}

// Many operations of a few microseconds each: what starting and joining them costs.
void Deep(Bench* bench) {
  if (!bench->WantsTable("28 narrow layers")) return;
  const ModelShape shape = SmallDeep();
  for (const int threads : bench->threads()) {
    Subject subject(shape, kBf16, false, bench->pool(threads), threads);
    for (const int batch : {1, kMostBatch}) {
      bench->Measure({.table = "28 narrow layers", .name = "decode, batch " + std::to_string(batch), .path = subject.path(), .threads = threads,
                      .bytes = DecodeBytes(shape, kBf16, subject.ExpertsRead(batch), batch), .operations = batch * RowOperations(shape, kDecodeAt),
                      .arithmetic = Arithmetic::kFloat, .unit = "us", .units = 1,
                      .run = [&](int64_t) { subject.Decode(batch); }});
    }
  }
}

void Main(Bench* bench) {
  for (const Format& format : kFormats) {
    std::optional<Peer> peer;
    if (format.name == kBf16.name && bench->peer().has_value()) {
      peer.emplace(bench->peer()->library, bench->peer()->model, bench->all_threads());
    }
    Slice(bench, format, peer.has_value() ? &*peer : nullptr);
  }
  Deterministic(bench);
  Deep(bench);
}

}  // namespace
}  // namespace margay::bench

int main(int argc, char** argv) {
  margay::bench::Bench bench(argc, argv);
  margay::bench::Main(&bench);
  return 0;
}
