// expert_parallel FOLDER GOLDEN [all]: runs recorded prompts through groups of 1 to 4 ranks in this process, on `ref` and the
// fastest cpu code path of this machine, in both modes, or on all of them; experts are spread unevenly, every rank has chunks of
// its own and some are without rows in the end. Prints one JSON line per path, mode and number of ranks; 1 is a rank alone:
//
//   max_diff       largest difference of a logit from the recorded one
//   argmax_wrong   positions whose arg-max differs although the recorded margin exceeds 3e-2
//   same_as_alone  bits of all logits, and of the draft layer's, equal those of a rank alone
//   replicated     the same with every other expert held by two ranks
//   fp8_error      of groups whose rows travel as bf16: root mean square of what the logits change by when they travel as fp8,
//                  over the logits' standard deviation; else null
#include <algorithm>
#include <cmath>

#include "golden_file.h"
#include "rank_group.h"

namespace margay::tests {
namespace {

constexpr float kMargin = 3e-2F;
constexpr int kMostRanks = 4;

using Logits = std::vector<std::vector<float>>;

bool SameBits(const Logits& a, const Logits& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) return false;
  }
  return a.size() == b.size();
}

struct Difference {
  float max_diff = 0;
  int argmax_wrong = 0;
};

Difference FromRecorded(const std::vector<Prompt>& prompts, const Logits& logits) {
  Difference d;
  for (size_t p = 0; p < prompts.size(); ++p) {
    const size_t vocab = prompts[p].logits.size() / static_cast<size_t>(prompts[p].recorded);
    const float* got = &logits[p][logits[p].size() - prompts[p].logits.size()];
    for (const float* want = prompts[p].logits.data(); want < prompts[p].logits.data() + prompts[p].logits.size();
         want += vocab, got += vocab) {
      for (size_t v = 0; v < vocab; ++v) {
        const float diff = std::fabs(want[v] - got[v]);
        d.max_diff = std::isnan(diff) ? INFINITY : std::max(d.max_diff, diff);
      }
      const auto best = std::max_element(want, want + vocab) - want;
      const auto mine = std::max_element(got, got + vocab) - got;
      d.argmax_wrong += mine != best && want[best] - want[mine] > kMargin ? 1 : 0;
    }
  }
  return d;
}

// Root mean square of the difference over the standard deviation.
double RelativeError(const Logits& exact, const Logits& rounded) {
  double count = 0, sum = 0, squares = 0, errors = 0;
  for (size_t s = 0; s < exact.size(); ++s) {
    for (size_t i = 0; i < exact[s].size(); ++i) {
      const double value = exact[s][i], error = value - rounded[s][i];
      ++count;
      sum += value;
      squares += value * value;
      errors += error * error;
    }
  }
  return std::sqrt(errors / (squares - sum * sum / count));
}

ExpertOwners Replicated(ExpertOwners owners, int ranks) {
  for (size_t expert = 0; expert < owners.size(); expert += 2) owners[expert].push_back((owners[expert][0] + 1) % ranks);
  return owners;
}

int Main(const std::string& folder, const std::string& golden_path, bool all_paths) {
  const std::vector<Prompt> prompts = ReadPrompts(GoldenFile(golden_path));
  std::vector<std::vector<int32_t>> sequences;
  for (const Prompt& prompt : prompts) sequences.push_back(prompt.tokens);
  std::vector<std::pair<std::string, bool>> paths = {{"ref", true}};
  for (const std::string& isa : CpuIsas()) {
    if (all_paths || isa == CpuIsas().back()) paths.emplace_back(isa, true);
  }
  paths.emplace_back(CpuIsas().back(), false);
  for (const auto& [path, deterministic] : paths) {
    std::vector<std::unique_ptr<Model>> models;
    Logits alone;
    Logits drafts_alone;
    for (int ranks = 1; ranks <= kMostRanks; ++ranks) {
      models.push_back(LoadRank(folder, path, deterministic, true, 1e-6F));
      const ModelFacts& facts = models[0]->facts();
      Together how{.chunks = {0, 7, 40, 1}, .owners = UnevenOwners(facts.experts, ranks)};
      const Logits logits = RunTogether(models, sequences, how);
      Logits drafts;
      if (facts.drafts) {
        how.chunks = {7};
        how.draft = true;
        drafts = RunTogether(models, sequences, how);
      }
      if (ranks == 1) {
        alone = logits;
        drafts_alone = drafts;
      }
      const bool same = SameBits(logits, alone) && SameBits(drafts, drafts_alone);
      const bool replicated =
          ranks == 1 || SameBits(alone, RunTogether(models, sequences,
                                                    {.chunks = {40, 64}, .owners = Replicated(UnevenOwners(facts.experts, ranks), ranks)}));
      const Difference difference = FromRecorded(prompts, logits);
      std::string fp8_error = "null";
      if (ranks > 1 && facts.payload == PayloadFormat::kBf16) {
        how = {.chunks = {0, 7, 40, 1}, .owners = UnevenOwners(facts.experts, ranks), .payload = PayloadFormat::kFp8};
        fp8_error = std::to_string(RelativeError(logits, RunTogether(models, sequences, how)));
      }
      std::printf("{\"path\":\"%s\",\"deterministic\":%s,\"ranks\":%d,\"max_diff\":%g,\"argmax_wrong\":%d,\"same_as_alone\":%s,"
                  "\"replicated\":%s,\"fp8_error\":%s}\n",
                  path.c_str(), deterministic ? "true" : "false", ranks, static_cast<double>(difference.max_diff),
                  difference.argmax_wrong, same ? "true" : "false", replicated ? "true" : "false", fp8_error.c_str());
      std::fflush(stdout);
    }
  }
  return 0;
}

}  // namespace
}  // namespace margay::tests

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: expert_parallel FOLDER GOLDEN [all]\n");
    return 2;
  }
  return margay::tests::Main(argv[1], argv[2], argc > 3);
}
