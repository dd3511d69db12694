// attention: compares the attention of every code path with a plain one in double precision over ugly shapes, and prints
// one JSON line per path and property: shapes tried, largest error relative to the size of the values.
//
//   attention    from the double precision result
//   company      from the same row alone on one thread: batch, shared blocks and threads must not change a bit
//   expanded     keys and values expanded from the latent, from the double precision result
//   rotate       rotary embedding
//
// The path "tiles" is what runs on AMX, its tiles emulated.
#include "kernels/attention/attention_list.h"
#include "kernels/attention/expanded_list.h"

#include <cstring>
#include <numbers>
#include <string>
#include <vector>

#include "core/number_formats.h"
#include "kernels/code_path.h"
#include "kernels/linear/panel_layout.h"
#include "kernels/vec/vec_generic.h"
#include "kernels/vec/tile_emulated.h"
#include "tally.h"
// The vector type and the tiles come first.
#include "kernels/attention/attention_tiles.h"

namespace margay::tests {
namespace {

constexpr int kPageTokens = 64;

// A pool of pages, not-a-number where nothing was written, and the tables of sequences that share some.
class Pages {
 public:
  Pages(Random* random, int width) : random_(random), width_(width) {}

  // A table for `tokens` tokens whose first `shared` blocks are those of `other`.
  std::vector<int32_t> Add(int tokens, const std::vector<int32_t>& other = {}, int shared = 0) {
    std::vector<int32_t> table(other.begin(), other.begin() + shared);
    for (int token = shared * kPageTokens; token < tokens; ++token) {
      if (token % kPageTokens == 0) {
        table.push_back(blocks_++);
        values_.resize(static_cast<size_t>(blocks_ * kPageTokens * width_), 0x7fc0);
      }
      for (int d = 0; d < width_; ++d) values_[Row(table, token) + static_cast<size_t>(d)] = FloatToBf16(random_->Next());
    }
    return table;
  }
  double At(const std::vector<int32_t>& table, int token, int d) const {
    return double{Bf16ToFloat(values_[Row(table, token) + static_cast<size_t>(d)])};
  }
  const uint8_t* base() const { return reinterpret_cast<const uint8_t*>(values_.data()); }

 private:
  size_t Row(const std::vector<int32_t>& table, int token) const {
    return static_cast<size_t>((table[static_cast<size_t>(token / kPageTokens)] * kPageTokens + token % kPageTokens) * width_);
  }
  Random* random_;
  int width_;
  int blocks_ = 0;
  std::vector<uint16_t> values_;
};

struct Sequence {
  int count;
  int end;         // tokens that the last row sees
  int like = -1;   // an earlier sequence whose first `shared` blocks it has
  int shared = 0;
};

using Batch = std::vector<Sequence>;

const Batch kBatches[] = {
    {{1, 1}}, {{1, 63}}, {{1, 64}}, {{1, 65}}, {{1, 129}}, {{1, 1000}}, {{2, 2}}, {{2, 65}}, {{3, 129}}, {{4, 258}},
    {{15, 15}}, {{16, 80}}, {{17, 1040}}, {{63, 63}}, {{64, 128}}, {{65, 300}},
    {{1, 700}, {3, 3}, {1, 64}, {9, 260}, {2, 1300}},
    {{1, 600}, {1, 560, 0, 8}, {4, 600, 0, 9}},                              // shares one part, two parts
    {{2, 2700}, {1, 3200, 0, 40}, {1, 600}, {3, 2100, 0, 33}, {1, 300, 2, 4}, {1, 3100, 1, 48}},  // sharers of different depth
    {{1, 256}, {1, 257, 0, 4}, {1, 258, 0, 4}},                              // the first one's own row is in the part
};

// [rows, heads, latent], row by row.
std::vector<double> Plain(const Pages& pages, const std::vector<int32_t>& table, const Sequence& s, const AttentionShape& shape,
                          const float* q, int stride) {
  std::vector<double> out(static_cast<size_t>(s.count * shape.heads * shape.latent));
  std::vector<double> keys;
  for (int token = 0; token < s.end; ++token) {
    for (int d = 0; d < shape.width(); ++d) keys.push_back(pages.At(table, token, d));
  }
  for (int i = 0; i < s.count * shape.heads; ++i) {
    const int seen = s.end - s.count + i / shape.heads + 1;
    std::vector<double> weights(static_cast<size_t>(seen));
    double top = -1e300;
    double sum = 0;
    for (int t = 0; t < seen; ++t) {
      double score = 0;
      for (int d = 0; d < shape.width(); ++d) score += double{q[i * stride + d]} * keys[static_cast<size_t>(t * shape.width() + d)];
      weights[static_cast<size_t>(t)] = score;
      top = std::max(top, score);
    }
    for (double& weight : weights) sum += (weight = std::exp2(weight - top));
    for (int t = 0; t < seen; ++t) {
      for (int d = 0; d < shape.latent; ++d) {
        out[static_cast<size_t>(i * shape.latent + d)] += weights[static_cast<size_t>(t)] / sum * keys[static_cast<size_t>(t * shape.width() + d)];
      }
    }
  }
  return out;
}

void CheckBatch(const CodePath& path, const AttentionShape& shape, const Batch& batch, ThreadPool* one, ThreadPool* three,
                Tally* plain, Tally* company) {
  Random random;
  Pages pages(&random, shape.width());
  std::vector<std::vector<int32_t>> tables;
  int rows = 0;
  for (const Sequence& s : batch) {
    tables.push_back(s.like < 0 ? pages.Add(s.end) : pages.Add(s.end, tables[static_cast<size_t>(s.like)], s.shared));
    rows += s.count;
  }
  const int stride = shape.width() + 5;
  std::vector<float> q = random.Floats(rows * shape.heads * stride);
  for (float& value : q) value *= 2 / std::sqrt(static_cast<float>(shape.width()));
  std::vector<AttentionRows> sequences;
  int first_row = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    sequences.push_back({first_row, batch[i].count, batch[i].end - batch[i].count, tables[i].data()});
    first_row += batch[i].count;
  }
  std::vector<float> out(static_cast<size_t>(rows * shape.heads * shape.latent), NAN);
  AttentionList list(path.attention, three, shape, rows);
  list.Cut(sequences);
  list.Run(q.data(), stride, pages.base(), out.data());

  AttentionList alone(path.attention, one, shape, 1);
  const size_t row_values = static_cast<size_t>(shape.heads * shape.latent);
  std::vector<float> row_out(row_values);
  const float* from = q.data();
  const float* got = out.data();
  for (size_t i = 0; i < batch.size(); ++i) {
    const std::vector<double> want = Plain(pages, tables[i], batch[i], shape, from, stride);
    for (const double value : want) plain->Add(*got++, value, 2);
    got -= want.size();
    for (int row = 0; row < batch[i].count; ++row, from += shape.heads * stride, got += row_values) {
      const AttentionRows one_row{0, 1, sequences[i].position + row, tables[i].data()};
      alone.Cut({&one_row, 1});
      alone.Run(from, stride, pages.base(), row_out.data());
      company->Add(std::memcmp(row_out.data(), got, row_values * sizeof(float)) == 0 ? 0 : 1, 0, 1);
    }
  }
  ++plain->shapes;
  ++company->shapes;
}

// Per head latent -> [nope, v_head], in bf16 panels, and what they mean.
struct Expansion {
  std::vector<std::vector<std::byte>> bytes;
  std::vector<MatmulWeights> weights;
  std::vector<std::vector<double>> dense;  // [out][latent]

  Expansion(Random* random, const ExpandedShape& shape) {
    const int panels = (shape.expanded() + kPanel - 1) / kPanel;
    const size_t panel_bytes = PanelBytes(WeightFormat::kBf16, shape.latent);
    for (int head = 0; head < shape.heads; ++head) {
      auto& packed = bytes.emplace_back(static_cast<size_t>(panels) * panel_bytes);
      auto& plain = dense.emplace_back();
      for (int o = 0; o < shape.expanded(); ++o) {
        for (int k = 0; k < shape.latent; ++k) {
          const uint16_t bits = FloatToBf16(random->Next() / std::sqrt(static_cast<float>(shape.latent)));
          std::memcpy(&packed[static_cast<size_t>(o / kPanel) * panel_bytes + WeightOffset(WeightFormat::kBf16, o % kPanel, k)], &bits, 2);
          plain.push_back(Bf16ToFloat(bits));
        }
      }
      weights.push_back({WeightFormat::kBf16, shape.expanded(), shape.latent, packed.data(), nullptr, nullptr});
    }
  }
};

void CheckExpanded(const CodePath& path, const ExpandedShape& shape, const Batch& batch, ThreadPool* pool, Tally* tally) {
  Random random;
  const int width = shape.latent + shape.rope;
  Pages pages(&random, width);
  const Expansion expansion(&random, shape);
  std::vector<std::vector<int32_t>> tables;
  std::vector<AttentionRows> sequences;
  int rows = 0;
  for (const Sequence& s : batch) tables.push_back(pages.Add(s.end));
  for (size_t i = 0; i < batch.size(); ++i) {
    sequences.push_back({rows + 1, batch[i].count, batch[i].end - batch[i].count, tables[i].data()});  // a row of others between
    rows += batch[i].count + 1;
  }
  std::vector<float> q = random.Floats(rows * shape.heads * shape.qk_head());
  for (float& value : q) value *= 2 / std::sqrt(static_cast<float>(shape.qk_head()));
  std::vector<float> out(static_cast<size_t>(rows * shape.heads * shape.v_head), 77.0F);
  ExpandedList list(path, pool, shape, rows);
  list.Cut(sequences);
  list.Run(q.data(), pages.base(), expansion.weights, out.data());
  for (size_t i = 0; i < batch.size(); ++i) {
    const AttentionRows& s = sequences[i];
    for (int j = 0; j < shape.heads * shape.v_head; ++j) tally->Add(out[static_cast<size_t>((s.first_row - 1) * shape.heads * shape.v_head + j)], 77, 1e-3);
    for (int head = 0; head < shape.heads; ++head) {
      std::vector<double> kv(static_cast<size_t>(s.end() * shape.expanded()));
      for (int t = 0; t < s.end(); ++t) {
        for (int o = 0; o < shape.expanded(); ++o) {
          double sum = 0;
          for (int k = 0; k < shape.latent; ++k) sum += pages.At(tables[i], t, k) * expansion.dense[static_cast<size_t>(head)][static_cast<size_t>(o * shape.latent + k)];
          kv[static_cast<size_t>(t * shape.expanded() + o)] = sum;
        }
      }
      for (int row = 0; row < s.count; ++row) {
        const size_t at = static_cast<size_t>((s.first_row + row) * shape.heads + head);
        const float* query = &q[at * static_cast<size_t>(shape.qk_head())];
        std::vector<double> want(static_cast<size_t>(shape.v_head));
        std::vector<double> weights;
        double top = -1e300;
        double all = 0;
        for (int t = 0; t <= s.position + row; ++t) {
          double score = 0;
          for (int d = 0; d < shape.nope; ++d) score += query[d] * kv[static_cast<size_t>(t * shape.expanded() + d)];
          for (int d = 0; d < shape.rope; ++d) score += query[shape.nope + d] * pages.At(tables[i], t, shape.latent + d);
          weights.push_back(score);
          top = std::max(top, score);
        }
        for (double& weight : weights) all += (weight = std::exp2(weight - top));
        for (size_t t = 0; t < weights.size(); ++t) {
          for (int d = 0; d < shape.v_head; ++d) want[static_cast<size_t>(d)] += weights[t] / all * kv[t * static_cast<size_t>(shape.expanded()) + static_cast<size_t>(shape.nope + d)];
        }
        for (int d = 0; d < shape.v_head; ++d) tally->Add(out[at * static_cast<size_t>(shape.v_head) + static_cast<size_t>(d)], want[static_cast<size_t>(d)], 2);
      }
    }
  }
  ++tally->shapes;
}

void CheckRotate(const CodePath& path) {
  Random random;
  Tally tally;
  for (const int pairs : {1, 3, 4, 7, 8, 16, 32}) {
    const std::vector<float> x = random.Floats(2 * pairs);
    std::vector<float> cosine, sine, y(x.size() + 1, 5.0F);
    for (int i = 0; i < 2 * pairs; ++i) {
      const float angle = static_cast<float>(i / 2 + 1) * 0.7F;
      cosine.push_back(std::cos(angle));
      sine.push_back(i % 2 == 0 ? -std::sin(angle) : std::sin(angle));
    }
    path.attention->rotate(x.data(), cosine.data(), sine.data(), 2 * pairs, y.data());
    for (size_t i = 0; i < x.size(); i += 2) {
      tally.Add(y[i], double{x[i]} * cosine[i] - double{x[i + 1]} * sine[i + 1], 2);
      tally.Add(y[i + 1], double{x[i + 1]} * cosine[i] + double{x[i]} * sine[i + 1], 2);
    }
    tally.Add(y.back(), 5, 1e-3);  // nothing is written beyond
    ++tally.shapes;
  }
  tally.Print(path.name, "rotate");
}

int Main() {
  constexpr AttentionShape kShapes[] = {{4, 32, 16}, {3, 20, 6}, {6, 96, 32}, {5, 33, 2}, {20, 64, 32}};
  constexpr ExpandedShape kExpanded[] = {{4, 32, 16, 16, 16}, {2, 33, 7, 6, 19}, {3, 96, 32, 32, 40}};
  const Batch kRows[] = {{{1, 1}}, {{2, 65}}, {{15, 129}}, {{16, 16}}, {{17, 300}}, {{63, 127}}, {{64, 128}}, {{65, 257}}, {{520, 530}}, {{3, 64}, {70, 200}}};
  constexpr AttentionShape kLarge = {64, 512, 64};
  ThreadPool one(1);
  ThreadPool three(3);
  std::vector<CodePath> paths = UsableCodePaths();
  CodePath tiles = paths.front();
  tiles.name = "tiles";
  tiles.attention = &kTileAttentionTable;
  paths.push_back(tiles);
  for (const CodePath& path : paths) {
    Tally plain;
    Tally company;
    for (const AttentionShape& shape : kShapes) {
      for (const Batch& batch : kBatches) CheckBatch(path, shape, batch, &one, &three, &plain, &company);
    }
    CheckBatch(path, kLarge, {{1, 65}}, &one, &three, &plain, &company);
    CheckBatch(path, kLarge, {{2, 300}, {1, 270, 0, 4}, {1, 3}}, &one, &three, &plain, &company);
    plain.Print(path.name, "attention");
    company.Print(path.name, "company");
    Tally expanded;
    for (const ExpandedShape& shape : kExpanded) {
      for (const Batch& batch : kRows) CheckExpanded(path, shape, batch, &three, &expanded);
    }
    expanded.Print(path.name, "expanded");
    CheckRotate(path);
  }
  return 0;
}

}  // namespace
}  // namespace margay::tests

int main() { return margay::tests::Main(); }
