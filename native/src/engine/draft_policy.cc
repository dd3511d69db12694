#include "engine/draft_policy.h"

#include <algorithm>
#include <cmath>

namespace margay {
namespace {

constexpr float kHopedFor = 0.8F;  // of the first draft, as long as nothing is known
constexpr float kOfStream = 0.04F;
constexpr float kOfAll = 0.02F;
constexpr double kToBegin = 1.03;  // a gain smaller than what measurements differ by is none

}  // namespace

DraftPolicy::DraftPolicy(int most_rows, int drafts)
    : step_(most_rows), draft_(most_rows), fill_(most_rows), mean_yield_(drafts > 0 ? kHopedFor : 0) {}

void DraftPolicy::Verified(int rows, int accepted, float* yield) {
  const auto got = static_cast<float>(accepted);
  *yield += kOfStream * (got - *yield);
  mean_yield_ += kOfAll * (got - mean_yield_);
  rows_each_ += double{kOfAll} * (rows - rows_each_);
}

std::optional<int> DraftPolicy::Best(std::span<const float> yields, int streams) const {
  const std::optional<double> plain_step = step_.At(streams);
  const std::optional<double> fill = fill_.At(streams);
  if (!plain_step.has_value() || !fill.has_value()) return std::nullopt;
  const double plain = streams / (*plain_step + *fill);
  double best_rate = drafting_ ? plain : plain * kToBegin;
  int best = 0;
  double tokens = streams;
  for (size_t i = 0; i < yields.size(); ++i) {
    const int drafting = static_cast<int>(i) + 1;
    tokens += double{yields[i]};
    const std::optional<double> step = step_.At(streams + static_cast<int>(std::lround(drafting * rows_each_)));
    const std::optional<double> pass = draft_.At(drafting);
    if (!step.has_value() || !pass.has_value()) {
      if (drafting == static_cast<int>(yields.size())) return std::nullopt;
      continue;
    }
    const double rate = tokens / (*step + *pass);
    if (rate <= best_rate) continue;
    best_rate = rate;
    best = drafting;
  }
  return best;
}

int DraftPolicy::Choose(std::span<const float> yields, int streams) {
  if (yields.empty()) return 0;
  ++steps_;
  const int all = static_cast<int>(yields.size());
  const int chosen = Best(yields, streams).value_or(all);
  const bool drafts = chosen > 0;
  if (drafts != drafting_ || 4 * std::abs(streams - streams_) > streams_) {
    drafting_ = drafts;
    streams_ = streams;
    trial_ = kFirstTrial;
    next_trial_ = steps_ + trial_;
  } else if (steps_ >= next_trial_) {
    trial_ = std::min(2 * trial_, kMostTrial);
    next_trial_ = steps_ + trial_;
    return drafts ? 0 : all;
  }
  return chosen;
}

}  // namespace margay
