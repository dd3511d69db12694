// A group of ranks under test and the plain calculation its results are compared with.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "claim.h"
#include "comm/exchange.h"
#include "core/number_formats.h"

namespace margay {

// Experts dealt out in turn: uneven where members do not divide them.
inline ExpertOwners DealtOut(int experts, int members) {
  ExpertOwners owners;
  for (int expert = 0; expert < experts; ++expert) owners.push_back({expert % members});
  return owners;
}

inline GroupSpec SmallSpec(int members) {
  GroupSpec spec;
  spec.epoch = 7;
  spec.members.resize(static_cast<size_t>(members));
  spec.owners = DealtOut(10, members);
  spec.hidden = 136;
  spec.topk = 4;
  spec.max_rows = 80;
  spec.deadline_ms = 20'000;
  return spec;
}

// Rows of one member in one layer: the same everywhere for the same numbers.
struct RowsOf {
  int rows = 0;
  std::vector<float> values;
  std::vector<int32_t> chosen;
  std::vector<float> weights;

  DispatchRows Dispatch() const { return {rows, values.data(), chosen.data(), weights.data()}; }
  void PutInto(ExpertExchange* exchange, int hidden) const {
    for (int row = 0; row < rows; ++row) exchange->PutRow(row, values.data() + static_cast<size_t>(row * hidden));
  }
};

// Every fourth expert or so is a zero-computation expert.
inline RowsOf MakeRows(const GroupSpec& spec, int rows, uint64_t seed) {
  std::mt19937_64 random(seed * 7919 + 13);
  std::normal_distribution<float> normal;
  RowsOf made;
  made.rows = rows;
  const int slots = static_cast<int>(spec.owners.size()) * 4 / 3 + spec.topk;
  for (int i = 0; i < rows * spec.hidden; ++i) made.values.push_back(normal(random));
  for (int row = 0; row < rows; ++row) {
    std::vector<int32_t> ids(static_cast<size_t>(slots));
    for (int i = 0; i < slots; ++i) ids[static_cast<size_t>(i)] = i;
    for (int k = 0; k < spec.topk; ++k) {
      std::swap(ids[static_cast<size_t>(k)], ids[static_cast<size_t>(k) + random() % static_cast<size_t>(slots - k)]);
      made.chosen.push_back(ids[static_cast<size_t>(k)]);
      made.weights.push_back(static_cast<float>(1 + random() % 64) / 64);
    }
  }
  return made;
}

// What stands for an expert: another linear map of its row for each.
inline void ExpertOutput(int expert, int hidden, const float* row, float* out) {
  for (int i = 0; i < hidden; ++i) out[i] = row[i] * static_cast<float>(expert + 1) + row[(i + expert) % hidden] / 2;
}

// Experts of this rank, for all rows received.
inline void ComputeExperts(const GroupSpec& spec, std::span<const ReceivedRow> received, ExpertExchange* exchange) {
  const auto hidden = static_cast<size_t>(spec.hidden);
  std::vector<float> row(hidden), out(hidden), sum(hidden);
  for (size_t i = 0; i < received.size(); ++i) {
    exchange->Decode(static_cast<int>(i), row.data());
    std::fill(sum.begin(), sum.end(), 0.0F);
    for (size_t c = 0; c < received[i].choices.size(); ++c) {
      const ExpertChoice& choice = received[i].choices[c];
      ExpertOutput(choice.expert, spec.hidden, row.data(), out.data());
      if (spec.combine == CombineMode::kPerExpert) exchange->PutResult(static_cast<int>(i), static_cast<int>(c), out.data());
      for (size_t h = 0; h < hidden; ++h) sum[h] += choice.weight * out[h];
    }
    if (spec.combine == CombineMode::kSummed) exchange->PutResult(static_cast<int>(i), 0, sum.data());
  }
}

// One layer of one rank; `out` gets [rows, hidden].
inline Status RunLayer(const GroupSpec& spec, ExpertExchange* exchange, int layer, const RowsOf& mine, std::vector<float>* out) {
  std::span<const ReceivedRow> received;
  mine.PutInto(exchange, spec.hidden);
  if (Status s = exchange->DispatchSend(layer, mine.Dispatch()); !s.ok()) return s;
  if (Status s = exchange->DispatchReceive(layer, &received); !s.ok()) return s;
  ComputeExperts(spec, received, exchange);
  if (Status s = exchange->CombineSend(layer); !s.ok()) return s;
  if (Status s = exchange->CombineReceive(layer); !s.ok()) return s;
  out->assign(mine.values.size(), 0);
  for (int row = 0; row < mine.rows; ++row) exchange->AddResults(row, out->data() + static_cast<size_t>(row * spec.hidden));
  return Status::Ok();
}

// Without any exchange, in double; `scale` is the size that errors are measured against.
struct Plain {
  std::vector<double> out, scale;
};
inline Plain PlainLayer(const GroupSpec& spec, const RowsOf& mine) {
  Plain plain;
  plain.out.resize(mine.values.size());
  plain.scale.resize(mine.values.size());
  const auto hidden = static_cast<size_t>(spec.hidden);
  std::vector<float> out(hidden);
  for (size_t row = 0; row < static_cast<size_t>(mine.rows); ++row) {
    for (size_t k = row * static_cast<size_t>(spec.topk); k < (row + 1) * static_cast<size_t>(spec.topk); ++k) {
      if (mine.chosen[k] >= static_cast<int32_t>(spec.owners.size())) continue;
      ExpertOutput(mine.chosen[k], spec.hidden, &mine.values[row * hidden], out.data());
      double most = 0;
      for (const float value : out) most = std::max(most, std::fabs(double{value}));
      for (size_t h = 0; h < hidden; ++h) {
        plain.out[row * hidden + h] += double{mine.weights[k]} * double{out[h]};
        plain.scale[row * hidden + h] += double{mine.weights[k]} * most;
      }
    }
  }
  return plain;
}

// Largest error over the size of what was added up.
inline double ErrorOf(const Plain& plain, const std::vector<float>& out) {
  double most = out.size() == plain.out.size() ? 0 : 1e9;
  for (size_t i = 0; i < out.size() && most < 1e9; ++i) {
    most = std::max(most, std::fabs(double{out[i]} - plain.out[i]) / std::max(plain.scale[i], 1e-9));
  }
  return most;
}

// Runs every member in a thread of its own.
inline void OnEach(int members, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int member = 0; member < members; ++member) threads.emplace_back(body, member);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace margay
