// sampling: claims about the choice of tokens.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "claim.h"
#include "kernels/code_path.h"
#include "kernels/sample/sample.h"

namespace margay {
namespace {

constexpr int kVocab = 5000;

// Of the code path whose claims are checked.
const SampleKernels* kernels = nullptr;

Sampled Sample(std::span<float> logits, const SampleParams& params, std::span<const int32_t> history, int prompt_length, int position) {
  static std::map<const SampleKernels*, Sampler> samplers;
  return samplers.try_emplace(kernels, kernels).first->second.Sample(logits, params, history, prompt_length, position);
}

// A peaked distribution over a shuffled vocabulary, all logits different.
std::vector<float> Logits() {
  std::vector<float> logits(kVocab);
  for (int i = 0; i < kVocab; ++i) logits[static_cast<size_t>(i)] = 12.0F - 0.004F * static_cast<float>((i * 2731) % kVocab);
  return logits;
}

Sampled Draw(const SampleParams& params, int position, std::vector<int32_t> history = {}, int prompt_length = 0) {
  std::vector<float> logits = Logits();
  return Sample(logits, params, history, prompt_length, position);
}

std::set<int32_t> Seen(SampleParams params, int draws) {
  std::set<int32_t> seen;
  for (int i = 0; i < draws; ++i) seen.insert(Draw(params, i).token);
  return seen;
}

std::vector<int32_t> Ranking() {
  std::vector<float> logits = Logits();
  std::vector<int32_t> order(kVocab);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
  return order;
}

std::string Greedy() {
  Finding found;
  found.Same("the best token", Draw({}, 0).token, Ranking()[0]);
  std::vector<float> tie = {1, 3, 3, 2};
  found.Same("the first of equals", Sample(tie, {}, {}, 0, 0).token, 1);
  return found.what();
}

std::string Numbers() {
  Finding found;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    std::vector<float> logits = Logits();
    logits[4999] = bad;
    found.Same("the token", Sample(logits, {}, {}, 0, 0).token, -1);
  }
  return found.what();
}

std::string Seeds() {
  Finding found;
  int same = 0;
  for (int i = 0; i < 200; ++i) {
    const SampleParams a{.temperature = 1, .seed = 5};
    const SampleParams b{.temperature = 1, .seed = 6};
    found.Same("a repeated draw", Draw(a, i).token, Draw(a, i).token);
    same += Draw(a, i).token == Draw(b, i).token ? 1 : 0;
  }
  found.Expect(same < 40, "other seeds agree " + std::to_string(same) + " times of 200");
  found.Expect(Seen({.temperature = 1, .seed = 1}, 200).size() > 100, "positions draw alike");
  return found.what();
}

// Frequencies of a small distribution, by the chi-square statistic with 3 degrees of freedom.
std::string Frequencies() {
  const double p[] = {0.5, 0.25, 0.15, 0.1};
  constexpr int kDraws = 20000;
  int counts[4] = {};
  for (int i = 0; i < kDraws; ++i) {
    std::vector<float> logits;
    for (const double mass : p) logits.push_back(static_cast<float>(std::log(mass) * 2));
    ++counts[Sample(logits, {.temperature = 2, .seed = 42}, {}, 0, i).token];
  }
  double chi = 0;
  for (int i = 0; i < 4; ++i) chi += std::pow(counts[i] - p[i] * kDraws, 2) / (p[i] * kDraws);
  return chi < 16.3 ? "" : "chi-square is " + std::to_string(chi);
}

std::string TopK() {
  Finding found;
  const std::vector<int32_t> order = Ranking();
  const std::set<int32_t> seen = Seen({.temperature = 50, .top_k = 5, .seed = 1}, 400);
  found.Expect(seen == std::set<int32_t>(order.begin(), order.begin() + 5), "others than the best five were drawn, or not all");
  found.Same("top_k 1", Draw({.temperature = 5, .top_k = 1, .seed = 3}, 9).token, order[0]);
  std::vector<float> ties(100, 1.0F);
  for (int i = 0; i < 100; ++i) {
    std::vector<float> copy = ties;
    found.Expect(Sample(copy, {.temperature = 1, .top_k = 3}, {}, 0, i).token < 3, "a tie went to a higher id");
  }
  return found.what();
}

std::string TopP() {
  Finding found;
  const std::vector<int32_t> order = Ranking();
  std::vector<double> mass;
  const std::vector<float> logits = Logits();
  for (const int32_t id : order) mass.push_back(std::exp(double{logits[static_cast<size_t>(id)]} - 12));
  const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
  for (const float top_p : {0.001F, 0.1F, 0.5F, 0.97F}) {
    double sum = 0;
    size_t kept = 0;
    while (sum < double{top_p} * total * (1 - 1e-6)) sum += mass[kept++];
    const std::set<int32_t> allowed(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept) + 1);
    const std::set<int32_t> seen = Seen({.temperature = 1, .top_p = top_p, .seed = 8}, 1500);
    for (const int32_t id : seen) found.Expect(allowed.contains(id), "a token beyond top_p " + std::to_string(top_p));
    found.Expect(seen.size() >= std::min<size_t>(allowed.size() / 2, 200), "too few tokens at top_p " + std::to_string(top_p));
  }
  return found.what();
}

std::string MinP() {
  const std::vector<int32_t> order = Ranking();
  // Neighbours in rank differ by a factor exp(-0.004): min_p 0.9 keeps ranks 0 to 26.
  const std::set<int32_t> seen = Seen({.temperature = 1, .min_p = 0.9F, .seed = 8}, 2000);
  return seen == std::set<int32_t>(order.begin(), order.begin() + 27) ? "" : std::to_string(seen.size()) + " tokens were drawn, not the best 27";
}

std::string Penalties() {
  Finding found;
  const std::vector<int32_t> order = Ranking();
  const int32_t best = order[0];
  const int32_t next = order[1];
  found.Same("frequency", Draw({.frequency_penalty = 0.003F}, 0, {best, best}, 0).token, next);
  found.Same("frequency once", Draw({.frequency_penalty = 0.003F}, 0, {best}, 0).token, best);
  found.Same("frequency in the prompt", Draw({.frequency_penalty = 1}, 0, {best, best}, 2).token, best);
  found.Same("presence", Draw({.presence_penalty = 0.005F}, 0, {best, best, best}, 1).token, next);
  found.Same("presence in the prompt", Draw({.presence_penalty = 1}, 0, {best}, 1).token, best);
  found.Same("repetition", Draw({.repetition_penalty = 1.1F}, 0, {best, best}, 2).token, next);
  std::vector<float> negative = {-1, -1.05F};
  found.Same("repetition of a negative logit", Sample(negative, {.repetition_penalty = 1.2F}, std::vector<int32_t>{0}, 1, 0).token, 1);
  found.Same("after a penalty, none is left", Draw({.repetition_penalty = 1.0F}, 0, {best}, 0).token, best);
  found.Same("bias", Draw({.bias_ids = {order[900]}, .bias_values = {100}}, 0).token, order[900]);
  found.Same("banned", Draw({.banned = {best, next, 99999}}, 0).token, order[2]);
  found.Same("banned, drawn", Draw({.temperature = 0.0001F, .banned = {best}}, 0).token, next);
  return found.what();
}

// What no caller should ask for: the choice is a token all the same.
std::string Extremes() {
  Finding found;
  const auto is_token = [&](const std::string& what, const SampleParams& params) {
    const int32_t token = Draw(params, 3).token;
    found.Expect(token >= 0 && token < kVocab, what + " gave the token " + std::to_string(token));
  };
  const float none = std::numeric_limits<float>::quiet_NaN();
  const float most = std::numeric_limits<float>::infinity();
  SampleParams biased{.temperature = 1, .top_k = 40, .top_p = 0.9F, .seed = 1};
  for (int32_t id = 0; id < kVocab; id += 3) {
    biased.bias_ids.push_back(id);
    biased.bias_values.push_back(none);
  }
  is_token("a bias that is no number", biased);
  found.Expect(Draw(biased, 3).token % 3 != 0, "a logit that is no number was drawn");
  is_token("an endless bias", {.temperature = 1, .top_p = 0.5F, .min_p = 0.5F, .bias_ids = {7, 9}, .bias_values = {most, most}});
  found.Same("min_p above 1", Draw({.temperature = 1, .min_p = 2}, 3).token, Ranking()[0]);
  is_token("top_p 0", {.temperature = 1, .top_p = 0});
  found.Same("a tiny temperature", Draw({.temperature = 1e-30F}, 3).token, Ranking()[0]);
  is_token("an endless temperature", {.temperature = most});
  is_token("repetition_penalty 0", {.temperature = 1, .repetition_penalty = 0});
  SampleParams all{.temperature = 1};
  all.banned.resize(kVocab);
  std::iota(all.banned.begin(), all.banned.end(), 0);
  is_token("a ban of everything", all);
  return found.what();
}

std::string LogProbs() {
  Finding found;
  const std::vector<int32_t> order = Ranking();
  double sum = 0;
  for (const float logit : Logits()) sum += std::exp(double{logit});
  const auto wanted = [&](int rank) { return static_cast<float>(12 - 0.004 * rank - std::log(sum)); };
  const Sampled s = Draw({.temperature = 3, .top_k = 40, .seed = 2, .presence_penalty = 2, .banned = {order[0]}, .top_logprobs = 3}, 4, {order[1]}, 0);
  found.Same("how many", s.top_ids.size(), size_t{3});
  for (int i = 0; i < 3 && !found.any(); ++i) {
    found.Same("ranked token", s.top_ids[static_cast<size_t>(i)], order[static_cast<size_t>(i)]);
    found.Expect(std::fabs(s.top_logprobs[static_cast<size_t>(i)] - wanted(i)) < 1e-4F, "a log-probability is wrong");
  }
  const auto rank = static_cast<int>(std::find(order.begin(), order.end(), s.token) - order.begin());
  found.Expect(std::fabs(s.logprob - wanted(rank)) < 1e-4F, "the chosen token's log-probability is not the raw one");
  found.Same("none asked for", Draw({}, 0).top_ids.size(), size_t{0});
  found.Same("only the chosen one's", Draw({.top_logprobs = 0}, 0).top_ids.size(), size_t{0});
  found.Expect(std::fabs(Draw({.top_logprobs = 0}, 0).logprob - wanted(0)) < 1e-4F, "greedy's log-probability is wrong");
  return found.what();
}

// The tokens of one vocabulary by falling logit, and the share of all mass that the better ones hold.
struct Ranked {
  explicit Ranked(const std::vector<float>& logits) : order(logits.size()), rank(logits.size()), before(logits.size()) {
    std::iota(order.begin(), order.end(), 0);
    const auto of = [&](int32_t id) { return logits[static_cast<size_t>(id)]; };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return of(a) > of(b); });
    double total = 0;
    for (const float logit : logits) total += std::exp(double{logit});
    double sum = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      rank[static_cast<size_t>(order[i])] = static_cast<int>(i);
      before[static_cast<size_t>(order[i])] = sum / total;
      sum += std::exp(double{of(order[i])});
    }
  }
  std::vector<int32_t> order;
  std::vector<int> rank;
  std::vector<double> before;
};

// Logits of a large vocabulary, flat or peaked.
std::vector<float> Large(float spread) {
  std::vector<float> logits(40013);
  uint32_t random = 5;
  for (float& logit : logits) logit = spread * static_cast<float>((random = random * 1664525 + 1013904223) >> 16) / 65536;
  return logits;
}

std::string LargeVocabulary(float spread) {
  Finding found;
  const std::vector<float> logits = Large(spread);
  const Ranked ranked(logits);
  const auto draw = [&](const SampleParams& params, int position) {
    std::vector<float> copy = logits;
    return Sample(copy, params, {}, 0, position);
  };
  for (const float top_p : {0.01F, 0.5F, 0.95F}) {
    int better_half = 0;
    for (int position = 0; position < 60; ++position) {
      const auto token = static_cast<size_t>(draw({.temperature = 1, .top_p = top_p, .seed = 3}, position).token);
      found.Expect(ranked.before[token] < double{top_p} * (1 + 1e-5), "a token beyond top_p " + std::to_string(top_p));
      better_half += ranked.before[token] < double{top_p} / 2 ? 1 : 0;
    }
    if (spread < 2) found.Expect(better_half > 12 && better_half < 48, "draws do not spread over top_p " + std::to_string(top_p));
  }
  for (const int top_k : {1, 50, 3000}) {
    for (int position = 0; position < 30; ++position) {
      const auto token = static_cast<size_t>(draw({.temperature = 9, .top_k = top_k, .seed = 3}, position).token);
      found.Expect(ranked.rank[token] < top_k, "a token beyond top_k " + std::to_string(top_k));
    }
  }
  const Sampled best = draw({.top_logprobs = 20}, 0);
  found.Same("how many are listed", best.top_ids.size(), size_t{20});
  found.Expect(std::equal(best.top_ids.begin(), best.top_ids.end(), ranked.order.begin()), "the most likely tokens are others");
  found.Same("the best token", best.token, ranked.order[0]);
  return found.what();
}

// Nothing tells these tokens apart but their ids, and a share of them ends in the middle of equals.
std::string EqualLogits() {
  Finding found;
  constexpr int kTokens = 131072;
  const std::vector<float> logits(kTokens, 0.25F);
  for (const float top_p : {0.001F, 0.5F, 0.9F}) {
    const double kept = std::ceil(double{top_p} * kTokens * (1 + 1e-4));
    constexpr int kDraws = 64;
    int lower = 0;
    std::set<int32_t> seen;
    for (int position = 0; position < kDraws; ++position) {
      std::vector<float> copy = logits;
      const int32_t token = Sample(copy, {.temperature = 0.7F, .top_p = top_p, .seed = 11}, {}, 0, position).token;
      found.Expect(token >= 0 && token <= kept, "token " + std::to_string(token) + " at top_p " + std::to_string(top_p));
      lower += token < kept / 2 ? 1 : 0;
      seen.insert(token);
    }
    // 32 expected, 4 the deviation.
    found.Expect(lower > 12 && lower < 52, std::to_string(lower) + " of 64 draws in the lower half at top_p " + std::to_string(top_p));
    found.Expect(seen.size() > kDraws / 3, "draws repeat at top_p " + std::to_string(top_p));
  }
  return found.what();
}

}  // namespace
}  // namespace margay

int main() {
  margay::Claims claims;
  for (const margay::CodePath& path : margay::UsableCodePaths()) {
    margay::kernels = path.sample;
    const auto check = [&](const std::string& claim, const std::string& broken) { claims.Check(path.name + ": " + claim, broken); };
    check("temperature 0 takes the best token, the lowest id of equals", margay::Greedy());
    check("a logit that is no finite number gives no token", margay::Numbers());
    check("a draw depends on seed and position", margay::Seeds());
    check("draws have the frequencies of the softmax at that temperature", margay::Frequencies());
    check("top_k draws from the best k, ties to the lower id", margay::TopK());
    check("top_p draws from the shortest list of best tokens that reaches the mass", margay::TopP());
    check("min_p drops what is less likely than a share of the best", margay::MinP());
    check("penalties, bias and bans change the choice as told", margay::Penalties());
    check("parameters without sense still give a token of the vocabulary", margay::Extremes());
    check("log-probabilities are those of the raw distribution", margay::LogProbs());
    check("a large flat vocabulary keeps these promises", margay::LargeVocabulary(0.001F));
    check("one of middle height too", margay::LargeVocabulary(1));
    check("and a peaked one", margay::LargeVocabulary(30));
    check("top_p over equal logits keeps the lowest ids that reach the mass", margay::EqualLogits());
  }
  return claims.ExitCode();
}
