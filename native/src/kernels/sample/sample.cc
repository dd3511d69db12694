#include "kernels/sample/sample.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace margay {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// Kept between calls so that a token costs no allocation.
struct Scratch {
  std::vector<float> raw;
  std::vector<int32_t> counts;  // all zero between calls
  std::vector<int32_t> candidates;
};

Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

// Scans of a whole vocabulary go in lanes without order, so that they become vector code on any machine.
constexpr size_t kLanes = 16;

bool AllFinite(std::span<const float> values) {
  constexpr uint32_t kExponent = 0x7f800000;
  std::array<uint32_t, kLanes> broken{};
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const auto bits = std::bit_cast<uint32_t>(values[i + lane]);
      broken[lane] |= (bits & kExponent) == kExponent ? 1u : 0u;
    }
  }
  for (; i < values.size(); ++i) broken[0] |= std::isfinite(values[i]) ? 0u : 1u;
  return std::all_of(broken.begin(), broken.end(), [](uint32_t any) { return any == 0; });
}

float Greatest(std::span<const float> values) {
  std::array<float, kLanes> top;
  top.fill(kNever);
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      top[lane] = values[i + lane] > top[lane] ? values[i + lane] : top[lane];
    }
  }
  for (; i < values.size(); ++i) top[0] = std::max(top[0], values[i]);
  return *std::max_element(top.begin(), top.end());
}

uint64_t Mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

// Uniform in (0, 1): a counter-based draw, so it needs no state.
double Uniform(uint64_t seed, int position) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;
  const uint64_t bits = Mix(Mix(seed + kGolden) + kGolden * (static_cast<uint64_t>(position) + 1));
  return (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53;
}

// Order of preference: higher logit first, ties to the lower id.
struct Better {
  std::span<const float> logits;
  bool operator()(int32_t a, int32_t b) const {
    const float x = logits[static_cast<size_t>(a)];
    const float y = logits[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  }
};

void Penalise(std::span<float> logits, const SampleParams& p, std::span<const int32_t> history, int prompt_length,
              Scratch* scratch) {
  const auto valid = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < logits.size(); };
  const auto generated = history.subspan(std::min(history.size(), static_cast<size_t>(std::max(prompt_length, 0))));
  std::vector<int32_t>& counts = scratch->counts;
  if (counts.size() < logits.size()) counts.resize(logits.size());
  if (p.repetition_penalty != 1) {
    for (const int32_t id : history) {
      if (!valid(id) || counts[static_cast<size_t>(id)]++ > 0) continue;
      float& logit = logits[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / p.repetition_penalty : logit * p.repetition_penalty;
    }
    for (const int32_t id : history) {
      if (valid(id)) counts[static_cast<size_t>(id)] = 0;
    }
  }
  if (p.frequency_penalty != 0 || p.presence_penalty != 0) {
    for (const int32_t id : generated) {
      if (valid(id)) ++counts[static_cast<size_t>(id)];
    }
    for (const int32_t id : generated) {
      if (!valid(id) || counts[static_cast<size_t>(id)] == 0) continue;
      const auto times = static_cast<float>(counts[static_cast<size_t>(id)]);
      logits[static_cast<size_t>(id)] -= p.frequency_penalty * times + p.presence_penalty;
      counts[static_cast<size_t>(id)] = 0;
    }
  }
  for (size_t i = 0; i < std::min(p.bias_ids.size(), p.bias_values.size()); ++i) {
    if (valid(p.bias_ids[i])) logits[static_cast<size_t>(p.bias_ids[i])] += p.bias_values[i];
  }
  for (const int32_t id : p.banned) {
    if (valid(id)) logits[static_cast<size_t>(id)] = kNever;
  }
}

// Keeps the shortest run of best candidates whose mass reaches top_p of the whole.
void KeepTopP(const Better& better, double top_p, float top, float inverse_temperature, std::vector<int32_t>* ids) {
  const auto mass = [&](int32_t id) { return double{std::exp((better.logits[static_cast<size_t>(id)] - top) * inverse_temperature)}; };
  double total = 0;
  for (const int32_t id : *ids) total += mass(id);
  double sum = 0;
  size_t sorted = 0;
  for (size_t upto = 64; sorted < ids->size(); upto *= 8) {
    const auto begin = ids->begin() + static_cast<std::ptrdiff_t>(sorted);
    const auto end = ids->begin() + static_cast<std::ptrdiff_t>(std::min(upto, ids->size()));
    std::partial_sort(begin, end, ids->end(), better);
    for (; sorted < static_cast<size_t>(end - ids->begin()); ++sorted) {
      sum += mass((*ids)[sorted]);
      if (sum >= top_p * total) {
        ids->resize(sorted + 1);
        return;
      }
    }
  }
}

int32_t Draw(std::span<const float> logits, const SampleParams& p, int position, std::vector<int32_t>* ids) {
  const Better better{logits};
  ids->clear();
  float top = kNever;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] > kNever)) continue;  // a bias may have left no number: it has no place in an order
    ids->push_back(static_cast<int32_t>(i));
    top = std::max(top, logits[i]);
  }
  if (ids->empty()) return 0;
  const float inverse = 1 / std::max(p.temperature, 1e-6F);
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < ids->size()) {
    std::nth_element(ids->begin(), ids->begin() + p.top_k - 1, ids->end(), better);
    ids->resize(static_cast<size_t>(p.top_k));
  }
  if (p.top_p < 1) KeepTopP(better, p.top_p, top, inverse, ids);
  const auto mass = [&](int32_t id) { return std::exp((logits[static_cast<size_t>(id)] - top) * inverse); };
  if (p.min_p > 0) {
    const float least = std::min(p.min_p, 1.0F);  // the best stays
    std::erase_if(*ids, [&](int32_t id) { return mass(id) < least; });
  }
  if (ids->size() < logits.size()) std::sort(ids->begin(), ids->end());
  double total = 0;
  for (const int32_t id : *ids) total += double{mass(id)};
  const double wanted = Uniform(p.seed, position) * total;
  double sum = 0;
  int32_t last = ids->front();
  for (const int32_t id : *ids) {
    const double m = double{mass(id)};
    if (m <= 0) continue;
    last = id;
    sum += m;
    if (sum >= wanted) break;
  }
  return last;
}

// From logits that were penalised.
bool Allows(std::span<const uint32_t> mask, size_t id) { return (mask[id / 32] >> (id % 32) & 1) != 0; }

void Mask(std::span<float> logits, std::span<const uint32_t> mask) {
  for (size_t word = 0; word < mask.size(); ++word) {
    if (mask[word] == ~uint32_t{0}) continue;
    const size_t end = std::min(logits.size(), (word + 1) * 32);
    for (size_t id = word * 32; id < end; ++id) {
      if (!Allows(mask, id)) logits[id] = kNever;
    }
  }
}

int32_t Choose(std::span<const float> logits, const SampleParams& params, int position, Scratch* scratch) {
  if (params.temperature > 0) return Draw(logits, params, position, &scratch->candidates);
  const auto best = std::find(logits.begin(), logits.end(), Greatest(logits));
  // Not found where a bias that is no number left nothing to compare.
  return best == logits.end() ? 0 : static_cast<int32_t>(best - logits.begin());
}

}  // namespace

Proposed Propose(std::span<float> logits, const SampleParams& params, std::span<const int32_t> history,
                 int prompt_length, int position) {
  if (!AllFinite(logits)) return {};
  Scratch& scratch = ThreadScratch();
  Penalise(logits, params, history, prompt_length, &scratch);
  const int32_t token = Choose(logits, params, position, &scratch);
  const float chosen = logits[static_cast<size_t>(token)];
  double sum = 0;
  for (const float logit : logits) sum += double{std::exp(logit - chosen)};
  return {token, static_cast<float>(1 / sum)};
}

Sampled Sample(std::span<float> logits, const SampleParams& params, std::span<const int32_t> history, int prompt_length,
               int position) {
  Sampled sampled;
  if (!AllFinite(logits)) return sampled;
  Scratch& scratch = ThreadScratch();
  const bool wants_logprobs = params.top_logprobs >= 0;
  if (wants_logprobs) scratch.raw.assign(logits.begin(), logits.end());
  Penalise(logits, params, history, prompt_length, &scratch);
  Mask(logits, params.allowed);
  sampled.token = Choose(logits, params, position, &scratch);
  if (!params.allowed.empty() && !Allows(params.allowed, static_cast<size_t>(sampled.token))) {
    // Everything allowed was banned: the mask is the stronger word.
    for (sampled.token = 0; !Allows(params.allowed, static_cast<size_t>(sampled.token));) ++sampled.token;
  }
  if (!wants_logprobs) return sampled;

  const std::vector<float>& raw = scratch.raw;
  const float top = Greatest(raw);
  double sum = 0;
  for (const float logit : raw) sum += double{std::exp(logit - top)};
  const auto logprob = [&](int32_t id) { return static_cast<float>(double{raw[static_cast<size_t>(id)]} - top - std::log(sum)); };
  sampled.logprob = logprob(sampled.token);
  const size_t wanted = std::min(static_cast<size_t>(params.top_logprobs), raw.size());
  scratch.candidates.resize(raw.size());
  for (size_t i = 0; i < raw.size(); ++i) scratch.candidates[i] = static_cast<int32_t>(i);
  const auto cut = scratch.candidates.begin() + static_cast<std::ptrdiff_t>(wanted);
  std::partial_sort(scratch.candidates.begin(), cut, scratch.candidates.end(), Better{raw});
  sampled.top_ids.assign(scratch.candidates.begin(), cut);
  for (const int32_t id : sampled.top_ids) sampled.top_logprobs.push_back(logprob(id));
  return sampled;
}

}  // namespace margay
