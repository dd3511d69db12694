#include "engine/cost_curve.h"

#include <algorithm>
#include <cmath>

namespace margay {

void CostCurve::Observe(int rows, double ms) {
  constexpr double kMostSurprise = 1.5;  // whoever was off its core for a while says nothing about the pass
  constexpr double kTogether = 0.05;
  constexpr double kAlone = 0.1;
  constexpr double kMostWeight = 0.5;
  Point& own = points_[static_cast<size_t>(std::clamp(rows, 0, static_cast<int>(points_.size()) - 1))];
  ++observations_;
  if (own.visits > 0) {
    const double ratio = std::clamp(ms / own.ms, 1 / kMostSurprise, kMostSurprise);
    const double seen = own.ms * ratio;
    for (Point& point : points_) point.ms *= 1 + kTogether * (ratio - 1);
    // What was not seen for long, or seldom, is believed less.
    const double age = 1 - std::pow(1 - kAlone, static_cast<double>(observations_ - own.last));
    own.ms += std::min(kMostWeight, std::max(age, 1.0 / (own.visits + 1))) * (seen - own.ms);
  } else {
    own.ms = ms;
  }
  ++own.visits;
  own.last = observations_;
}

std::optional<double> CostCurve::At(int rows) const {
  const int most = static_cast<int>(points_.size()) - 1;
  const int at = std::clamp(rows, 0, most);
  const auto seen = [&](int i) { return points_[static_cast<size_t>(i)].visits > 0; };
  const auto ms = [&](int i) { return points_[static_cast<size_t>(i)].ms; };
  int below = at, above = at;
  while (below >= 0 && !seen(below)) --below;
  while (above <= most && !seen(above)) ++above;
  if (below == at) return ms(at);
  if (below >= 0 && above <= most) return ms(below) + (ms(above) - ms(below)) * (at - below) / (above - below);
  const int near = below >= 0 ? below : above;
  if (near > most || 4 * std::abs(near - at) > std::max(at, 4)) return std::nullopt;
  // Half of it stays when rows go away.
  return ms(near) * (1 + 0.5 * (static_cast<double>(at) / std::max(near, 1) - 1));
}

}  // namespace margay
