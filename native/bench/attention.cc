// attention: latent attention of LongCat's shape (64 heads, 512 + 64 values) over pages that no cache holds: decode in the
// absorbed form, prefill of a chunk with expanded keys and values. Projections around it are not in the times.
#include <string>
#include <vector>

#include "frame.h"
#include "kernels/attention/attention_list.h"
#include "kernels/attention/expanded_list.h"
#include "kernels/code_path.h"

namespace margay::bench {
namespace {

constexpr AttentionShape kShape = {64, 512, 64};
constexpr int kBlockTokens = 64;
constexpr int kContext = 8192;
constexpr int kMostRows = 16;

// Multiplications and additions of a row with one token it sees.
constexpr double kOperations = 2.0 * 64 * (576 + 512);

// Pages in an order that is not that of memory, as an allocator leaves them.
class Pool {
 public:
  explicit Pool(ThreadPool* pool) : memory_(kBlocks * kPageBytes) {
    FillNormalBf16({memory_.as<uint16_t>(), memory_.bytes() / 2}, 1, 1, pool);
  }
  // The table of the sequence-th sequence; its first `shared` blocks are those of the 0th.
  std::vector<int32_t> Table(int64_t sequence, int tokens, int shared) const {
    std::vector<int32_t> table;
    for (int64_t block = 0; block < (tokens + kBlockTokens - 1) / kBlockTokens; ++block) {
      const int64_t at = (block < shared ? 0 : sequence) * (kContext / kBlockTokens) + block;
      table.push_back(static_cast<int32_t>(at * 389 % kBlocks));
    }
    return table;
  }
  const uint8_t* base() const { return memory_.as<uint8_t>(); }

 private:
  static constexpr int64_t kBlocks = 4099;  // 289 MiB, a prime
  static constexpr size_t kPageBytes = size_t{2} * kBlockTokens * 576;
  Buffer memory_;
};

// `count` sequences of `rows` rows each, the last of which sees `context` tokens.
struct Batch {
  std::string name;
  int count;
  int rows;
  int context;
  int shared;  // blocks
};

const Batch kBatches[] = {
    {"decode, 1 row of 8K", 1, 1, kContext, 0},
    {"decode, 2 rows of 8K", 1, 2, kContext, 0},
    {"decode, 1 row of 1K", 1, 1, 1024, 0},
    {"decode, 16 rows of 8K each", 16, 1, kContext, 0},
    {"decode, 16 rows of 8K, 7K of it shared", 16, 1, kContext, 112},
};

void MeasureBatch(Bench* bench, const Batch& batch, const Pool& pages, const CodePath& path, int threads, const float* q, float* out) {
  AttentionList list(path.attention, bench->pool(threads), kShape, kMostRows);
  std::vector<std::vector<int32_t>> tables;
  constexpr int kSets = 3;  // of sequences, so that a run finds its pages cold
  for (int i = 0; i < kSets * batch.count; ++i) tables.push_back(pages.Table(i, batch.context, batch.shared));
  const double units = batch.count * batch.rows * batch.context / 1024.0;
  bench->Measure({.table = "attention",
                  .name = batch.name,
                  .path = path.name,
                  .threads = threads,
                  .operations = kOperations * 1024 * units,
                  .arithmetic = Arithmetic::kFloat,
                  .unit = "us",  // per 1024 tokens and row, of all threads together
                  .units = units,
                  .promise = ShareOfLimit(0.70, 0.85),
                  .run = [&](int64_t run) {
                    std::vector<AttentionRows> sequences;
                    for (int i = 0; i < batch.count; ++i) {
                      const auto table = static_cast<size_t>(run % kSets * batch.count + i);
                      sequences.push_back({i * batch.rows, batch.rows, batch.context - batch.rows, tables[table].data()});
                    }
                    list.Cut(sequences);
                    list.Run(q, kShape.width(), pages.base(), out);
                  }});
}

constexpr ExpandedShape kExpanded = {64, 512, 128, 64, 128};
constexpr int kChunk = 512;

// A chunk against a prefix; beside it the same rows absorbed.
void MeasurePrefill(Bench* bench, int prefix, const Pool& pages, const Buffer& weights, const CodePath& path, int threads,
                    const Buffer& q, const Buffer& out) {
  ExpandedList expanded(path, bench->pool(threads), kExpanded, kChunk);
  AttentionList absorbed(path.attention, bench->pool(threads), kShape, kChunk);
  std::vector<MatmulWeights> heads;
  for (size_t head = 0; head < 64; ++head) {
    heads.push_back({WeightFormat::kBf16, kExpanded.expanded(), kExpanded.latent, weights.data() + head * weights.bytes() / 64, nullptr, nullptr});
  }
  const std::vector<int32_t> table = pages.Table(0, prefix + kChunk, 0);
  const AttentionRows rows{0, kChunk, prefix, table.data()};
  expanded.Cut({&rows, 1});
  absorbed.Cut({&rows, 1});
  const double pairs = kChunk * (prefix + (kChunk + 1) / 2.0);
  bench->Measure({.table = "attention",
                  .name = "prefill, 512 rows after " + std::to_string(prefix),
                  .path = path.name,
                  .threads = threads,
                  .operations = 2.0 * 64 * (pairs * (192 + 128) + (prefix + kChunk) * 512.0 * 256),
                  .arithmetic = Arithmetic::kFloat,
                  .unit = "us",  // per row
                  .units = kChunk,
                  .promise = ShareOfLimit(0.70, 0.85),
                  .run = [&](int64_t) { expanded.Run(q.as<float>(), pages.base(), heads, out.as<float>()); },
                  .rivals = {{"absorbed", [&](int64_t) { absorbed.Run(q.as<float>(), kShape.width(), pages.base(), out.as<float>()); }}}});
}

void Main(int argc, char** argv) {
  Bench bench(argc, argv);
  const Pool pages(bench.pool(bench.all_threads()));
  constexpr int kQueries = kChunk * 64;
  Buffer q(size_t{4} * kQueries * 576);
  Buffer out(size_t{4} * kQueries * 512);
  FillNormal({q.as<float>(), q.bytes() / 4}, 0.05F, 2);
  Buffer weights(size_t{2} * 64 * 256 * 512);
  FillNormalBf16({weights.as<uint16_t>(), weights.bytes() / 2}, 0.04F, 3, bench.pool(bench.all_threads()));
  const CodePath path = UsableCodePaths().back();
  for (const int threads : bench.threads()) {
    for (const Batch& batch : kBatches) MeasureBatch(&bench, batch, pages, path, threads, q.as<float>(), out.as<float>());
    for (const int prefix : {0, 2048, 4096}) MeasurePrefill(&bench, prefix, pages, weights, path, threads, q, out);
  }
}

}  // namespace
}  // namespace margay::bench

int main(int argc, char** argv) {
  margay::bench::Main(argc, argv);
  return 0;
}
