#include "model/routing.h"

#include <algorithm>

namespace margay {

void ChooseExperts(std::span<const float> probabilities, std::span<const float> bias, std::span<int32_t> chosen) {
  // Insertion into a short sorted list: topk is about a dozen, and few slots beat its last entry.
  size_t filled = 0;
  const auto score = [&](int32_t id) { return probabilities[static_cast<size_t>(id)] + bias[static_cast<size_t>(id)]; };
  for (size_t slot = 0; slot < probabilities.size(); ++slot) {
    const auto id = static_cast<int32_t>(slot);
    const float mine = score(id);
    if (filled == chosen.size() && !(mine > score(chosen[filled - 1]))) continue;
    if (filled < chosen.size()) ++filled;
    size_t at = filled - 1;
    for (; at > 0 && mine > score(chosen[at - 1]); --at) chosen[at] = chosen[at - 1];
    chosen[at] = id;
  }
}

void Routing::Settle(std::span<int32_t> chosen) {
  if (prescribed_ != nullptr && taken_ + chosen.size() <= prescribed_->size()) {
    std::copy_n(prescribed_->begin() + static_cast<std::ptrdiff_t>(taken_), chosen.size(), chosen.begin());
    taken_ += chosen.size();
  }
  if (recorded_ != nullptr) recorded_->insert(recorded_->end(), chosen.begin(), chosen.end());
}

}  // namespace margay
