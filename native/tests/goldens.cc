// goldens FOLDER GOLDEN: runs every prompt of a recorded file through `ref` and every cpu code path of this machine, cut
// in several ways, and prints one JSON line per backend, mode (the cpu paths run in both) and cut:
//
//   max_diff         largest difference of a logit from the recorded one, over positions before any routing difference
//   argmax_wrong     positions whose arg-max differs although the recorded margin exceeds 3e-2 (same positions)
//   flips            positions where an expert choice differs from ref's, as "prompt:position"
//   forced_max_diff, forced_argmax_wrong   the same over all positions, with ref's choices prescribed
//   same_as_whole    bits equal those of the whole-prompt run of the same backend
//   kv_noise         what bf16 KV alone does: largest difference of ref, its KV rounded to bf16, from the recorded
//                    logits, with ref's own choices
//   tie_noise        what chance decides of that rounding: largest difference of the rounded ref from itself when values
//                    are moved by the relative error of a sum before they are rounded
//   from_rounded     largest difference of a cpu path from that rounded ref, with the same choices
//
// Of a deterministic cpu path the rounded ref, and so the last two, rounds to bf16 what would travel between ranks as well:
// rows for experts, and what these make of them. It is a group of one rank then.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "comm/exchange.h"
#include "golden_file.h"
#include "model/model.h"
#include "core/number_formats.h"

namespace margay::tests {
namespace {

constexpr float kMargin = 3e-2F;
// Largest relative error of a sum on a cpu path (linear.cc bounds it), and how often its effect on ties is tried.
constexpr float kNudge = 2.5e-6F;
constexpr uint32_t kTies = 4;

struct Outcome {
  std::vector<std::vector<float>> logits;     // per prompt [tokens, vocab]
  std::vector<std::vector<int32_t>> choices;  // per prompt [tokens, layers * topk]
  std::vector<int32_t> routing;               // as recorded
};

// Feeds all prompts together, `chunk` tokens of each per step (0: each prompt whole, alone).
// With `kv` an fp32 pool holds what a bf16 pool would; with a seed after every value was moved by up to kNudge of itself,
// as another order of its sums would: those that lie at a border then round the other way.
enum class Kv { kAsItIs, kRounded };
Outcome RunPrompts(Model* model, const std::vector<Prompt>& prompts, int chunk, const std::vector<int32_t>* forced,
                   Kv rounding = Kv::kAsItIs, uint32_t seed = 0) {
  const ModelFacts& facts = model->facts();
  const auto vocab = static_cast<size_t>(facts.vocab_size);
  int blocks = 1;
  std::vector<std::vector<int32_t>> tables;
  for (const Prompt& prompt : prompts) {
    std::vector<int32_t>& table = tables.emplace_back((prompt.tokens.size() + kBlockTokens - 1) / kBlockTokens);
    for (auto& block : table) block = blocks++;
    std::reverse(table.begin(), table.end());
  }
  std::vector<std::byte> pool(facts.kv.block_bytes() * static_cast<size_t>(blocks), std::byte{0xff});
  const KvMemory kv{pool.data(), facts.kv, blocks};
  Outcome out;
  for (const Prompt& prompt : prompts) out.logits.emplace_back(prompt.tokens.size() * vocab);
  std::vector<std::pair<size_t, int>> order;  // prompt and position of each row, in order of processing, per step
  std::vector<size_t> step_rows;
  model->ForceRouting(forced, &out.routing);
  std::vector<size_t> at(prompts.size());
  std::vector<float> logits;
  std::minstd_rand random(seed);
  const auto run = [&](const std::vector<size_t>& members) {
    std::vector<SequenceRows> rows;
    size_t total = 0;
    for (const size_t p : members) {
      const size_t left = prompts[p].tokens.size() - at[p];
      const auto count = static_cast<int>(chunk == 0 ? left : std::min<size_t>(left, static_cast<size_t>(chunk)));
      rows.push_back({&prompts[p].tokens[at[p]], count, static_cast<int>(at[p]), tables[p].data(), count});
      for (int i = 0; i < count; ++i) order.emplace_back(p, static_cast<int>(at[p]) + i);
      total += static_cast<size_t>(count);
    }
    logits.resize(total * vocab);
    const auto round = [&](int attention) {
      for (const SequenceRows& sequence : rows) {
        for (int position = sequence.position; position < sequence.position + sequence.count; ++position) {
          auto* row = reinterpret_cast<float*>(kv.page(attention, sequence.block_table[position / kBlockTokens])) +
                      position % kBlockTokens * facts.kv.row_values;
          for (int i = 0; i < facts.kv.row_values; ++i) {
            if (seed != 0) row[i] *= 1 + kNudge * (2 * static_cast<float>(random() % 1024) / 1023 - 1);
            row[i] = Bf16ToFloat(FloatToBf16(row[i]));
          }
        }
      }
    };
    OrDie(model->Forward(rows, kv, rounding == Kv::kRounded ? AttentionDone(round) : nullptr, logits.data()));
    step_rows.push_back(total);
    const float* from = logits.data();
    for (size_t m = 0; m < members.size(); ++m) {
      const size_t size = static_cast<size_t>(rows[m].count) * vocab;
      std::memcpy(&out.logits[members[m]][at[members[m]] * vocab], from, size * sizeof(float));
      from += size;
      at[members[m]] += static_cast<size_t>(rows[m].count);
    }
  };
  if (chunk == 0) {
    for (size_t p = 0; p < prompts.size(); ++p) run({p});
  } else {
    while (true) {
      std::vector<size_t> members;
      for (size_t p = 0; p < prompts.size() && members.size() * static_cast<size_t>(chunk) < 448; ++p) {
        if (at[p] < prompts[p].tokens.size()) members.push_back(p);
      }
      if (members.empty()) break;
      run(members);
    }
  }
  model->ForceRouting(nullptr, nullptr);
  const size_t layers = static_cast<size_t>(facts.attentions) / 2;
  const size_t topk = out.routing.size() / (layers * order.size());
  for (const Prompt& prompt : prompts) out.choices.emplace_back(prompt.tokens.size() * layers * topk);
  size_t first = 0;
  const int32_t* ids = out.routing.data();
  for (const size_t rows : step_rows) {
    for (size_t layer = 0; layer < layers; ++layer) {
      for (size_t row = 0; row < rows; ++row, ids += topk) {
        const auto [p, position] = order[first + row];
        int32_t* to = &out.choices[p][(static_cast<size_t>(position) * layers + layer) * topk];
        std::copy_n(ids, topk, to);
        std::sort(to, to + topk);
      }
    }
    first += rows;
  }
  return out;
}

struct Difference {
  float max_diff = 0;
  int argmax_wrong = 0;
  int positions = 0;
};

// Over the recorded positions of each prompt before `limits`.
Difference Compare(const std::vector<Prompt>& prompts, const Outcome& outcome, const std::vector<int>& limits) {
  Difference d;
  for (size_t p = 0; p < prompts.size(); ++p) {
    const size_t vocab = prompts[p].logits.size() / static_cast<size_t>(prompts[p].recorded);
    const int first = static_cast<int>(prompts[p].tokens.size()) - prompts[p].recorded;
    for (int i = 0; i < prompts[p].recorded && first + i < limits[p]; ++i) {
      const float* want = &prompts[p].logits[static_cast<size_t>(i) * vocab];
      const float* got = &outcome.logits[p][static_cast<size_t>(first + i) * vocab];
      for (size_t v = 0; v < vocab; ++v) {
        const float diff = std::fabs(want[v] - got[v]);
        d.max_diff = std::isnan(diff) ? INFINITY : std::max(d.max_diff, diff);
      }
      const auto best = static_cast<size_t>(std::max_element(want, want + vocab) - want);
      float second = -INFINITY;
      for (size_t v = 0; v < vocab; ++v) {
        if (v != best) second = std::max(second, want[v]);
      }
      const auto mine = static_cast<size_t>(std::max_element(got, got + vocab) - got);
      d.argmax_wrong += mine != best && want[best] - second > kMargin ? 1 : 0;
      ++d.positions;
    }
  }
  return d;
}

float LargestDifference(const Outcome& a, const Outcome& b) {
  float largest = 0;
  for (size_t p = 0; p < a.logits.size(); ++p) {
    for (size_t i = 0; i < a.logits[p].size(); ++i) {
      const float diff = std::fabs(a.logits[p][i] - b.logits[p][i]);
      largest = std::isnan(diff) ? INFINITY : std::max(largest, diff);
    }
  }
  return largest;
}

bool SameBits(const Outcome& a, const Outcome& b) {
  for (size_t p = 0; p < a.logits.size(); ++p) {
    if (std::memcmp(a.logits[p].data(), b.logits[p].data(), a.logits[p].size() * sizeof(float)) != 0) return false;
  }
  return true;
}

struct Rounded {
  Outcome outcome;
  float tie_noise = 0;
};
Rounded RunRounded(Model* model, const std::vector<Prompt>& prompts, int chunk, const std::vector<int32_t>* forced) {
  Rounded rounded{RunPrompts(model, prompts, chunk, forced, Kv::kRounded)};
  for (uint32_t seed = 1; seed <= kTies; ++seed) {
    const Outcome nudged = RunPrompts(model, prompts, chunk, forced, Kv::kRounded, seed);
    rounded.tie_noise = std::max(rounded.tie_noise, LargestDifference(rounded.outcome, nudged));
  }
  return rounded;
}

// The same as a group of one rank, which rounds alike what stays with it.
Rounded RunTravelling(Model* model, const std::vector<Prompt>& prompts, int chunk, const std::vector<int32_t>* forced) {
  const ModelFacts& facts = model->facts();
  GroupSpec spec;
  spec.epoch = 1;
  spec.owners.assign(static_cast<size_t>(facts.experts), {0});
  spec.hidden = facts.hidden;
  spec.topk = facts.topk;
  spec.max_rows = facts.max_rows;
  spec.payload = PayloadFormat::kBf16;
  spec.combine = CombineMode::kPerExpert;
  const auto alone = OrDie(JoinInProcess(spec, 1));
  OrDie(model->SetExchange(alone[0].get()));
  Rounded rounded = RunRounded(model, prompts, chunk, forced);
  OrDie(model->SetExchange(nullptr));
  return rounded;
}

int Main(const std::string& folder, const std::string& golden_path, int threads) {
  const std::vector<Prompt> prompts = ReadPrompts(GoldenFile(golden_path));
  const int chunks[] = {0, 64, 7, 1};
  std::vector<Outcome> reference;
  std::vector<Rounded> rounded;
  Rounded travelling;
  std::vector<int> all;
  for (const Prompt& prompt : prompts) all.push_back(static_cast<int>(prompt.tokens.size()));
  std::vector<std::pair<std::string, bool>> paths = {{"ref", true}};
  for (const std::string& isa : CpuIsas()) {
    paths.emplace_back(isa, false);
    paths.emplace_back(isa, true);
  }
  for (const auto& [path, deterministic] : paths) {
    ModelOptions options;
    options.deterministic = deterministic;
    options.folder = folder;
    options.backend = path == "ref" ? BackendKind::kRef : BackendKind::kCpu;
    options.isa = path == "ref" ? "" : path;
    options.threads = threads;
    options.latent_norm_eps = 1e-6F;
    const std::unique_ptr<Model> model = OrDie(Model::Load(options));
    Outcome whole;
    for (size_t c = 0; c < std::size(chunks); ++c) {
      Outcome outcome = RunPrompts(model.get(), prompts, chunks[c], nullptr);
      if (path == "ref") {
        reference.push_back(outcome);
        rounded.push_back(RunRounded(model.get(), prompts, chunks[c], &reference[c].routing));
        if (c == 0) travelling = RunTravelling(model.get(), prompts, chunks[c], &reference[c].routing);
      }
      std::vector<int> limits;
      std::string flips;
      int flip_count = 0;
      int positions = 0;
      for (size_t p = 0; p < prompts.size(); ++p) {
        const auto length = static_cast<int>(prompts[p].tokens.size());
        const size_t each = outcome.choices[p].size() / static_cast<size_t>(length);
        limits.push_back(length);
        for (int i = length - 1; i >= 0; --i) {
          const size_t from = static_cast<size_t>(i) * each;
          if (std::equal(&outcome.choices[p][from], &outcome.choices[p][from] + each, &reference[c].choices[p][from])) continue;
          limits[p] = i;
          flips.append(flip_count++ == 0 ? "\"" : ",\"").append(std::to_string(p) + ":" + std::to_string(i) + "\"");
        }
        positions += length;
      }
      const Difference free = Compare(prompts, outcome, limits);
      Difference forced = free;
      if (flip_count > 0) {
        forced = Compare(prompts, RunPrompts(model.get(), prompts, chunks[c], &reference[c].routing), all);
      }
      const Rounded& expected = deterministic && path != "ref" ? travelling : rounded[c];
      const float from_rounded =
          path == "ref" ? 0 : LargestDifference(expected.outcome, RunPrompts(model.get(), prompts, chunks[c], &reference[c].routing));
      if (c == 0) whole = outcome;
      std::printf("{\"path\":\"%s\",\"deterministic\":%s,\"chunk\":%d,\"positions\":%d,\"compared\":%d,"
                  "\"max_diff\":%g,\"argmax_wrong\":%d,"
                  "\"flips\":[%s],\"forced_max_diff\":%g,\"forced_argmax_wrong\":%d,\"same_as_whole\":%s,\"kv_noise\":%g,"
                  "\"from_rounded\":%g,\"tie_noise\":%g}\n",
                  path.c_str(), deterministic ? "true" : "false", chunks[c], positions, free.positions,
                  static_cast<double>(free.max_diff), free.argmax_wrong,
                  flips.c_str(), static_cast<double>(forced.max_diff), forced.argmax_wrong,
                  SameBits(whole, outcome) ? "true" : "false",
                  static_cast<double>(Compare(prompts, expected.outcome, all).max_diff), static_cast<double>(from_rounded),
                  static_cast<double>(expected.tie_noise));
      std::fflush(stdout);
    }
  }
  return 0;
}

}  // namespace
}  // namespace margay::tests

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: goldens FOLDER GOLDEN [THREADS]\n");
    return 2;
  }
  return margay::tests::Main(argv[1], argv[2], argc > 3 ? std::atoi(argv[3]) : 0);
}
