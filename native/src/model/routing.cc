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

void RoutingCounts::Count(const DispatchRows& routed) {
  const auto add = [](std::atomic<uint64_t>* counter, uint64_t more) {
    counter->store(counter->load(std::memory_order_relaxed) + more, std::memory_order_relaxed);
  };
  uint64_t zero = 0;
  for (int i = 0; i < routed.rows * topk_; ++i) {
    const auto expert = static_cast<size_t>(routed.chosen[i]);
    if (expert < loads_.size()) {
      add(&loads_[expert], 1);
    } else {
      ++zero;
    }
  }
  add(&zero_choices_, zero);
  add(&rows_, static_cast<uint64_t>(routed.rows));
}

RoutingCounters RoutingCounts::Read() const {
  RoutingCounters counters;
  for (const auto& load : loads_) {
    counters.loads.push_back(load.load(std::memory_order_relaxed));
    counters.real_choices += counters.loads.back();
  }
  counters.rows = rows_.load(std::memory_order_relaxed);
  counters.zero_choices = zero_choices_.load(std::memory_order_relaxed);
  return counters;
}

}  // namespace margay
