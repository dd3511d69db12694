#include "kernels/sample/sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace margay {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kLowest = -std::numeric_limits<float>::max();

constexpr int kBlock = 4096;            // logits whose mass is summed up before the draw looks into them
constexpr size_t kBest[] = {64, 2048};  // so many candidates hold the mass of top_p most often, and nearly always
constexpr size_t kFew = 4096;           // candidates that are ordered rather than put into bins by their logits
constexpr std::ptrdiff_t kSorted = 32;  // candidates that are sorted rather than divided further

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

// Divides the range of some values evenly; the order of bins is that of the values in them.
class Bins {
 public:
  static constexpr int kCount = 1024;

  explicit Bins(std::span<const float> values) {
    float most = least_ = values[0];
    for (const float value : values) {
      least_ = std::min(least_, value);
      most = std::max(most, value);
    }
    if (most > least_) per_unit_ = kCount / (double{most} - double{least_});
  }

  bool AllEqual() const { return per_unit_ == 0; }
  int Of(float value) const { return std::min(static_cast<int>((double{value} - double{least_}) * per_unit_), kCount - 1); }

 private:
  float least_;
  double per_unit_ = 0;
};

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

bool Changes(const SampleParams& p) {
  return p.repetition_penalty != 1 || p.frequency_penalty != 0 || p.presence_penalty != 0 || !p.bias_ids.empty() ||
         !p.banned.empty() || !p.allowed.empty();
}

}  // namespace

void Sampler::Penalise(std::span<float> logits, const SampleParams& p, std::span<const int32_t> history, int prompt_length) {
  const auto valid = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < logits.size(); };
  const auto generated = history.subspan(std::min(history.size(), static_cast<size_t>(std::max(prompt_length, 0))));
  if (counts_.size() < logits.size()) counts_.resize(logits.size());
  if (p.repetition_penalty != 1) {
    for (const int32_t id : history) {
      if (!valid(id) || counts_[static_cast<size_t>(id)]++ > 0) continue;
      float& logit = logits[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / p.repetition_penalty : logit * p.repetition_penalty;
    }
    for (const int32_t id : history) {
      if (valid(id)) counts_[static_cast<size_t>(id)] = 0;
    }
  }
  if (p.frequency_penalty != 0 || p.presence_penalty != 0) {
    for (const int32_t id : generated) {
      if (valid(id)) ++counts_[static_cast<size_t>(id)];
    }
    for (const int32_t id : generated) {
      if (!valid(id) || counts_[static_cast<size_t>(id)] == 0) continue;
      const auto times = static_cast<float>(counts_[static_cast<size_t>(id)]);
      logits[static_cast<size_t>(id)] -= p.frequency_penalty * times + p.presence_penalty;
      counts_[static_cast<size_t>(id)] = 0;
    }
  }
  for (size_t i = 0; i < std::min(p.bias_ids.size(), p.bias_values.size()); ++i) {
    if (valid(p.bias_ids[i])) logits[static_cast<size_t>(p.bias_ids[i])] += p.bias_values[i];
  }
  for (const int32_t id : p.banned) {
    if (valid(id)) logits[static_cast<size_t>(id)] = kNever;
  }
}

Sampler::Scanned Sampler::Scan(std::span<const float> logits) {
  Scanned scanned{logits};
  tops_.resize((logits.size() + kLogitGroup - 1) / kLogitGroup);
  scanned.finite = kernels_->scan(logits.data(), static_cast<int>(logits.size()), &scanned.top, tops_.data());
  return scanned;
}

// 0 where a bias that is no number left nothing to compare.
int32_t Sampler::Best(const Scanned& scanned) const {
  const auto group = std::find(tops_.begin(), tops_.end(), scanned.top) - tops_.begin();
  if (group == static_cast<std::ptrdiff_t>(tops_.size())) return 0;
  const auto from = scanned.logits.begin() + group * kLogitGroup;
  return static_cast<int32_t>(std::find(from, scanned.logits.end(), scanned.top) - scanned.logits.begin()) %
         static_cast<int32_t>(scanned.logits.size());
}

void Sampler::Gather(const Scanned& scanned, float least) {
  const std::span<const float> logits = scanned.logits;
  if (found_.size() < logits.size()) found_.resize(logits.size());
  const int found = kernels_->at_least(logits.data(), static_cast<int>(logits.size()), std::max(least, kLowest), found_.data());
  candidates_.assign(found_.begin(), found_.begin() + found);
}

void Sampler::GatherBest(const Scanned& scanned, size_t count) {
  // As many groups have a maximum that is at least the count-th highest maximum: so many logits are.
  float least = kLowest;
  if (count <= tops_.size()) {
    sorted_tops_ = tops_;
    const auto last = sorted_tops_.begin() + static_cast<std::ptrdiff_t>(count) - 1;
    std::nth_element(sorted_tops_.begin(), last, sorted_tops_.end(), std::greater<>());
    least = *last;
  }
  Gather(scanned, least);
}

void Sampler::KeepBest(const Scanned& scanned, size_t count) {
  candidates_.clear();
  if (count == 0) return;
  GatherBest(scanned, count);
  if (candidates_.size() <= count) return;
  const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(count);
  std::nth_element(candidates_.begin(), end - 1, candidates_.end(), Better{scanned.logits});
  candidates_.resize(count);
}

void Sampler::Weigh(const Scanned& scanned, float inverse_temperature) {
  values_.resize(candidates_.size());
  masses_.resize(candidates_.size());
  for (size_t i = 0; i < candidates_.size(); ++i) values_[i] = scanned.logits[static_cast<size_t>(candidates_[i])];
  kernels_->masses(values_.data(), static_cast<int>(values_.size()), scanned.top, inverse_temperature, masses_.data());
}

std::pair<size_t, double> Sampler::Narrow(double wanted) {
  certain_.clear();
  double before = 0;
  while (candidates_.size() > kFew) {
    // The lowest and the highest bin have a value each, so that every turn leaves fewer candidates.
    const Bins bins(values_);
    if (bins.AllEqual()) break;
    bin_masses_.assign(Bins::kCount, 0);
    for (size_t i = 0; i < values_.size(); ++i) bin_masses_[static_cast<size_t>(bins.Of(values_[i]))] += double{masses_[i]};
    int last = Bins::kCount - 1;
    for (; last > 0 && before + bin_masses_[static_cast<size_t>(last)] < wanted; --last) before += bin_masses_[static_cast<size_t>(last)];
    size_t left = 0;
    for (size_t i = 0; i < candidates_.size(); ++i) {
      const int bin = bins.Of(values_[i]);
      if (bin > last) certain_.push_back(candidates_[i]);
      if (bin != last) continue;
      candidates_[left] = candidates_[i];
      values_[left] = values_[i];
      masses_[left++] = masses_[i];
    }
    candidates_.resize(left);
    values_.resize(left);
    masses_.resize(left);
  }
  candidates_.insert(candidates_.begin(), certain_.begin(), certain_.end());
  return {certain_.size(), before};
}

void Sampler::KeepTopP(const Scanned& scanned, float top_p, float inverse_temperature, bool from_all) {
  const Better better{scanned.logits};
  const auto sum_of_candidates = [&] {
    Weigh(scanned, inverse_temperature);
    double sum = 0;
    for (const float mass : masses_) sum += double{mass};
    return sum;
  };
  double wanted = 0;
  if (from_all) {
    const auto vocab = static_cast<int>(scanned.logits.size());
    wanted = double{top_p} * kernels_->mass(scanned.logits.data(), vocab, scanned.top, inverse_temperature);
    // The candidates are the best, all of them: if their mass does not do, those of the whole vocabulary are divided.
    const bool found = std::any_of(std::begin(kBest), std::end(kBest), [&](size_t best) {
      GatherBest(scanned, best);
      return sum_of_candidates() >= wanted;
    });
    if (!found) {
      Gather(scanned, kLowest);
      Weigh(scanned, inverse_temperature);
    }
  } else {
    wanted = double{top_p} * sum_of_candidates();
  }
  // Divides the range in which the run ends; what lies before it is better than all in it.
  auto [certain, before] = Narrow(wanted);
  auto first = candidates_.begin() + static_cast<std::ptrdiff_t>(certain);
  auto end = candidates_.end();
  const auto mass_of = [&](int32_t id) {
    float mass = 0;
    kernels_->masses(&scanned.logits[static_cast<size_t>(id)], 1, scanned.top, inverse_temperature, &mass);
    return double{mass};
  };
  const auto sum_to = [&](auto to) {
    double sum = before;
    for (auto at = first; at != to; ++at) sum += mass_of(*at);
    return sum;
  };
  while (end - first > kSorted) {
    const auto middle = first + (end - first) / 2;
    std::nth_element(first, middle, end, better);
    const double sum = sum_to(middle);
    if (sum >= wanted) {
      end = middle;
    } else {
      before = sum;
      first = middle;
    }
  }
  std::sort(first, end, better);
  for (; first != end; ++first) {
    before += mass_of(*first);
    if (before >= wanted) break;
  }
  if (first == end) {  // rounding left the mass short of what is wanted
    if (end == candidates_.end()) return;
    --first;
  }
  const int32_t last = *first;
  if (!from_all) {
    candidates_.erase(first + 1, candidates_.end());
    return;
  }
  // In order again, and without a sort.
  Gather(scanned, scanned.logits[static_cast<size_t>(last)]);
  std::erase_if(candidates_, [&](int32_t id) { return better(last, id); });
}

void Sampler::KeepMinP(const Scanned& scanned, float min_p, float inverse_temperature, bool from_all) {
  const double least = std::min(double{min_p}, 1.0);  // the best stays
  // A little more than what the mass allows; the masses decide.
  const double border = scanned.top + (std::log(least) - 0.01) / inverse_temperature - 1e-6 * std::fabs(scanned.top);
  if (from_all) Gather(scanned, static_cast<float>(border));
  Weigh(scanned, inverse_temperature);
  size_t kept = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (double{masses_[i]} >= least) candidates_[kept++] = candidates_[i];
  }
  candidates_.resize(kept);
}

// The first token at which the masses so far reach `share` of all.
int32_t Sampler::DrawFromAll(const Scanned& scanned, float inverse_temperature, double share) {
  const float* logits = scanned.logits.data();
  const auto vocab = static_cast<int>(scanned.logits.size());
  block_masses_.clear();
  double total = 0;
  for (int first = 0; first < vocab; first += kBlock) {
    block_masses_.push_back(kernels_->mass(logits + first, std::min(kBlock, vocab - first), scanned.top, inverse_temperature));
    total += block_masses_.back();
  }
  if (!(total > 0)) return Best(scanned);
  const double wanted = share * total;
  double sum = 0;
  size_t block = 0;
  size_t last = 0;  // block with mass
  for (double before = 0; block < block_masses_.size(); ++block) {
    if (block_masses_[block] > 0) last = block, sum = before;
    before += block_masses_[block];
    if (before >= wanted) break;
  }
  candidates_.clear();
  const auto first = static_cast<int32_t>(last) * kBlock;
  for (int32_t id = first; id < std::min(first + kBlock, vocab); ++id) candidates_.push_back(id);
  Weigh(scanned, inverse_temperature);
  return Walk(sum, wanted);
}

int32_t Sampler::DrawFromCandidates(const Scanned& scanned, float inverse_temperature, double share) {
  if (!std::is_sorted(candidates_.begin(), candidates_.end())) std::sort(candidates_.begin(), candidates_.end());
  Weigh(scanned, inverse_temperature);
  double total = 0;
  for (const float mass : masses_) total += double{mass};
  return total > 0 ? Walk(0, share * total) : Best(scanned);
}

int32_t Sampler::Walk(double sum, double wanted) const {
  int32_t last = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (masses_[i] <= 0) continue;
    last = candidates_[i];
    sum += double{masses_[i]};
    if (sum >= wanted) break;
  }
  return last;
}

int32_t Sampler::Draw(const Scanned& scanned, const SampleParams& p, int position) {
  if (!(scanned.top > kNever)) return 0;
  const float inverse = 1 / std::max(p.temperature, 1e-6F);
  const double share = Uniform(p.seed, position);
  bool all = true;
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < scanned.logits.size()) {
    KeepBest(scanned, static_cast<size_t>(p.top_k));
    all = false;
  }
  if (p.top_p < 1) {
    KeepTopP(scanned, p.top_p, inverse, all);
    all = false;
  }
  if (p.min_p > 0) {
    KeepMinP(scanned, p.min_p, inverse, all);
    all = false;
  }
  return all ? DrawFromAll(scanned, inverse, share) : DrawFromCandidates(scanned, inverse, share);
}

// From logits that were penalised.
int32_t Sampler::Choose(const Scanned& scanned, const SampleParams& params, int position) {
  return params.temperature > 0 ? Draw(scanned, params, position) : Best(scanned);
}

Proposed Sampler::Propose(std::span<float> logits, const SampleParams& params, std::span<const int32_t> history,
                          int prompt_length, int position) {
  Scanned scanned = Scan(logits);
  if (!scanned.finite) return {};
  if (Changes(params)) {
    Penalise(logits, params, history, prompt_length);
    scanned = Scan(logits);
  }
  const int32_t token = Choose(scanned, params, position);
  const auto vocab = static_cast<int>(logits.size());
  const double sum = kernels_->mass(logits.data(), vocab, scanned.top, 1);
  return {token, static_cast<float>(std::exp(double{logits[static_cast<size_t>(token)]} - scanned.top) / sum)};
}

Sampled Sampler::Sample(std::span<float> logits, const SampleParams& params, std::span<const int32_t> history,
                        int prompt_length, int position) {
  Sampled sampled;
  Scanned scanned = Scan(logits);
  if (!scanned.finite) return sampled;
  const bool wants_logprobs = params.top_logprobs >= 0;
  const bool changes = Changes(params);
  std::span<const float> raw = logits;
  double log_sum = 0;
  if (wants_logprobs) {
    log_sum = scanned.top + std::log(kernels_->mass(logits.data(), static_cast<int>(logits.size()), scanned.top, 1));
    const auto logprob = [&](int32_t id) { return static_cast<float>(double{logits[static_cast<size_t>(id)]} - log_sum); };
    KeepBest(scanned, std::min(static_cast<size_t>(params.top_logprobs), logits.size()));
    std::sort(candidates_.begin(), candidates_.end(), Better{logits});
    sampled.top_ids = candidates_;
    for (const int32_t id : sampled.top_ids) sampled.top_logprobs.push_back(logprob(id));
    if (changes) {
      raw_.assign(logits.begin(), logits.end());
      raw = raw_;
    }
  }
  if (changes) {
    Penalise(logits, params, history, prompt_length);
    Mask(logits, params.allowed);
    scanned = Scan(logits);
  }
  sampled.token = Choose(scanned, params, position);
  if (!params.allowed.empty() && !Allows(params.allowed, static_cast<size_t>(sampled.token))) {
    // Everything allowed was banned: the mask is the stronger word.
    for (sampled.token = 0; !Allows(params.allowed, static_cast<size_t>(sampled.token));) ++sampled.token;
  }
  if (wants_logprobs) sampled.logprob = static_cast<float>(double{raw[static_cast<size_t>(sampled.token)]} - log_sum);
  return sampled;
}

}  // namespace margay
