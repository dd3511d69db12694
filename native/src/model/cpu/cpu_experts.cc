// Experts of the cpu backend (spec 4): router, grouped matrix products, combination with the identity experts.
#include <algorithm>

#include "model/cpu/cpu_backend.h"

namespace margay {

void CpuBackend::Experts(const Step& step, int layer, Routing* routing) {
  const CpuLayer& l = weights_.layer(layer);
  const auto topk = static_cast<size_t>(c_.topk);
  const auto slots = static_cast<size_t>(c_.slots());
  RunOne(Job(l.router, n_.data(), step, probabilities_.data()));
  ForRows(step, c_.slots() * 4, [&](int row) {
    const auto r = static_cast<size_t>(row);
    path_.pointwise->softmax(&probabilities_[r * slots], c_.slots());
    path_.pointwise->top_slots(&probabilities_[r * slots], l.correction_bias, c_.slots(), c_.topk, &chosen_[r * topk]);
  });
  routing->Settle({chosen_.data(), step.rows.size() * topk});
  Assign(step.rows.size());
  jobs_.clear();
  for (size_t e = 0; e < l.experts.size(); ++e) {
    const int first = expert_first_[e];
    const int rows = expert_first_[e + 1] - first;
    if (rows == 0) continue;
    jobs_.push_back({l.experts[e].gate, &l.experts[e].up, n_.data(), c_.hidden, &assigned_[static_cast<size_t>(first)], rows,
                     wide_.data() + Area(first, c_.expert_ffn), c_.expert_ffn});
  }
  matmul_.Run(jobs_);
  jobs_.clear();
  for (size_t e = 0; e < l.experts.size(); ++e) {
    const int first = expert_first_[e];
    const int rows = expert_first_[e + 1] - first;
    if (rows == 0) continue;
    jobs_.push_back({l.experts[e].down, nullptr, wide_.data() + Area(first, c_.expert_ffn), c_.expert_ffn, nullptr, rows,
                     expert_out_.data() + Area(first, c_.hidden), c_.hidden});
  }
  matmul_.Run(jobs_);
  ForRows(step, c_.topk * c_.hidden, [&](int row, int thread) { Combine(row, thread); });
}

void CpuBackend::Assign(size_t rows) {
  const auto topk = static_cast<size_t>(c_.topk);
  std::fill(expert_first_.begin(), expert_first_.end(), 0);
  for (size_t i = 0; i < rows * topk; ++i) {
    if (chosen_[i] < c_.experts) ++expert_first_[static_cast<size_t>(chosen_[i]) + 1];
  }
  for (size_t e = 1; e < expert_first_.size(); ++e) expert_first_[e] += expert_first_[e - 1];
  for (size_t i = 0; i < rows * topk; ++i) {
    place_[i] = chosen_[i] < c_.experts ? expert_first_[static_cast<size_t>(chosen_[i])]++ : -1;
    if (place_[i] >= 0) assigned_[static_cast<size_t>(place_[i])] = static_cast<int32_t>(i / topk);
  }
  for (size_t e = expert_first_.size() - 1; e > 0; --e) expert_first_[e] = expert_first_[e - 1];
  expert_first_[0] = 0;
}

void CpuBackend::Combine(int row, int thread) {
  const float** sources = &sources_[Area(thread, c_.topk + 1)];
  float* weights = &source_weights_[Area(thread, c_.topk + 1)];
  int count = 0;
  float identity = 0;
  for (int k = 0; k < c_.topk; ++k) {
    const size_t i = Area(row, c_.topk) + static_cast<size_t>(k);
    const float weight = probabilities_[Area(row, c_.slots()) + static_cast<size_t>(chosen_[i])] * c_.routed_scale;
    if (place_[i] < 0) {
      identity += weight;
    } else {
      sources[count] = &expert_out_[Area(place_[i], c_.hidden)];
      weights[count++] = weight;
    }
  }
  if (identity != 0) {
    sources[count] = &n_[Area(row, c_.hidden)];
    weights[count++] = identity;
  }
  path_.pointwise->weighted_sum(sources, weights, count, c_.hidden, &m_[Area(row, c_.hidden)]);
}

}  // namespace margay
