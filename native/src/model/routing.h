// Which experts a token uses (spec 4.1), and the tests' way to record or prescribe it.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/exchange.h"
#include "model/model.h"

namespace margay {

// The topk slots with the highest probability + bias, ties to the lower id, by falling score.
void ChooseExperts(std::span<const float> probabilities, std::span<const float> bias, std::span<int32_t> chosen);

// Choices of one step. Recorded and prescribed ids are [layers][rows][topk] per step, steps in order.
class Routing {
 public:
  void Use(const std::vector<int32_t>* prescribed, std::vector<int32_t>* recorded) {
    prescribed_ = prescribed;
    recorded_ = recorded;
    taken_ = 0;
  }
  // Choices of one layer, [rows][topk], as the router made them: prescribed ones replace them, then they are recorded.
  void Settle(std::span<int32_t> chosen);

 private:
  const std::vector<int32_t>* prescribed_ = nullptr;
  std::vector<int32_t>* recorded_ = nullptr;
  size_t taken_ = 0;
};

// How often experts are chosen. One thread counts, any may read.
class RoutingCounts {
 public:
  RoutingCounts(int experts, int topk) : topk_(topk), loads_(static_cast<size_t>(experts)) {}
  void Count(const DispatchRows& routed);
  RoutingCounters Read() const;

 private:
  const int topk_;
  std::vector<std::atomic<uint64_t>> loads_;
  std::atomic<uint64_t> rows_{0};
  std::atomic<uint64_t> zero_choices_{0};
};

}  // namespace margay
