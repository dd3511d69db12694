// Experts of the cpu backend (spec 4): router, grouped matrix products over the rows that came for this rank's experts, and
// their join with the identity experts.
#include <algorithm>

#include "kernels/linear/panel_layout.h"
#include "model/cpu/cpu_backend.h"

namespace margay {

void CpuBackend::Route(const Step& step, int layer, Routing* routing) {
  const CpuLayer& l = weights_.layer(layer);
  const auto topk = static_cast<size_t>(c_.topk);
  const auto slots = static_cast<size_t>(c_.slots());
  RunOne(Job(l.router, branch_.get(), step, probabilities_.data()));
  ForRows(step, c_.slots() * 4, [&](int row) {
    const auto r = static_cast<size_t>(row);
    path_.pointwise->softmax(&probabilities_[r * slots], c_.slots());
    path_.pointwise->top_slots(&probabilities_[r * slots], l.correction_bias, c_.slots(), c_.topk, &chosen_[r * topk]);
  });
  routing->Settle({chosen_.data(), step.rows.size() * topk});
  for (size_t i = 0; i < step.rows.size() * topk; ++i) {
    chosen_weights_[i] = probabilities_[i / topk * slots + static_cast<size_t>(chosen_[i])] * c_.routed_scale;
  }
}

DispatchRows CpuBackend::Routed(const Step& step) const {
  return {static_cast<int>(step.rows.size()), branch_.get(), chosen_.data(), chosen_weights_.data()};
}

void CpuBackend::Experts(const Step& step, int layer) {
  const auto topk = static_cast<size_t>(c_.topk);
  const int first = deterministic_ ? max_rows_ : 0;
  if (deterministic_) {
    ForRows(step, c_.hidden, [&](int row) {
      row_format_.RoundPayload(&branch_[Area(row, c_.hidden)], &branch_[Area(first + row, c_.hidden)]);
    });
  }
  Assign(step.rows.size() * topk, [&](size_t i) { return chosen_[i]; },
         [&](size_t i) { return first + static_cast<int32_t>(i / topk); });
  RunExperts(weights_.layer(layer));
}

void CpuBackend::ServeExperts(std::span<const ReceivedRow> rows, int layer, ExpertExchange* exchange) {
  choice_rows_.clear();
  choice_experts_.clear();
  int decoded = max_rows_;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int32_t at = ReadsAsMade(rows[i]) ? rows[i].row : decoded++;
    first_choice_[i] = static_cast<int32_t>(choice_rows_.size());
    for (const ExpertChoice& choice : rows[i].choices) {
      choice_rows_.push_back(at);
      choice_experts_.push_back(choice.expert);
    }
  }
  const auto count = static_cast<int>(rows.size());
  ForRows(count, c_.hidden, [&](int i) {
    const auto r = static_cast<size_t>(i);
    if (!ReadsAsMade(rows[r])) exchange->Decode(i, &branch_[Area(choice_rows_[static_cast<size_t>(first_choice_[r])], c_.hidden)]);
  });
  Assign(choice_rows_.size(), [&](size_t i) { return choice_experts_[i]; }, [&](size_t i) { return choice_rows_[i]; });
  RunExperts(weights_.layer(layer));
  ForRows(count, c_.topk * c_.hidden, [&](int i, int thread) { TellResults(rows[static_cast<size_t>(i)], i, thread, exchange); });
}

void CpuBackend::TellResults(const ReceivedRow& row, int number, int thread, ExpertExchange* exchange) {
  const auto output = [&](size_t choice) {
    return &expert_out_[Area(place_[static_cast<size_t>(first_choice_[static_cast<size_t>(number)]) + choice], c_.hidden)];
  };
  if (combine() == CombineMode::kPerExpert) {
    for (size_t k = 0; k < row.choices.size(); ++k) exchange->PutResult(number, static_cast<int>(k), output(k));
    return;
  }
  const float** sources = &sources_[Area(thread, c_.topk + 1)];
  float* weights = &source_weights_[Area(thread, c_.topk + 1)];
  for (size_t k = 0; k < row.choices.size(); ++k) {
    sources[k] = output(k);
    weights[k] = row.choices[k].weight;
  }
  float* sum = &sums_[Area(thread, c_.hidden)];
  path_.pointwise->weighted_sum(sources, weights, static_cast<int>(row.choices.size()), c_.hidden, sum);
  exchange->PutResult(number, 0, sum);
}

void CpuBackend::RunExperts(const CpuLayer& l) {
  jobs_.clear();
  for (size_t e = 0; e < l.experts.size(); ++e) {
    const int first = expert_first_[e];
    const int rows = expert_first_[e + 1] - first;
    if (rows == 0) continue;
    jobs_.push_back({l.experts[e].gate, &l.experts[e].up, branch_.get(), c_.hidden, &assigned_[static_cast<size_t>(first)], rows,
                     &expert_wide_[Area(first, c_.expert_ffn)], c_.expert_ffn});
  }
  matmul_.Run(jobs_);
  jobs_.clear();
  for (size_t e = 0; e < l.experts.size(); ++e) {
    const int first = expert_first_[e];
    const int rows = expert_first_[e + 1] - first;
    if (rows == 0) continue;
    jobs_.push_back({l.experts[e].down, nullptr, &expert_wide_[Area(first, c_.expert_ffn)], c_.expert_ffn, nullptr, rows,
                     &expert_out_[Area(first, c_.hidden)], c_.hidden});
  }
  matmul_.Run(jobs_);
}

template <typename ExpertOf, typename RowOf>
void CpuBackend::Assign(size_t choices, const ExpertOf& expert_of, const RowOf& row_of) {
  std::fill(expert_first_.begin(), expert_first_.end(), 0);
  for (size_t i = 0; i < choices; ++i) {
    if (expert_of(i) < c_.experts) ++expert_first_[static_cast<size_t>(expert_of(i)) + 1];
  }
  for (size_t e = 1; e < expert_first_.size(); ++e) expert_first_[e] += expert_first_[e - 1];
  for (size_t i = 0; i < choices; ++i) {
    place_[i] = expert_of(i) < c_.experts ? expert_first_[static_cast<size_t>(expert_of(i))]++ : -1;
    if (place_[i] >= 0) assigned_[static_cast<size_t>(place_[i])] = row_of(i);
  }
  for (size_t e = expert_first_.size() - 1; e > 0; --e) expert_first_[e] = expert_first_[e - 1];
  expert_first_[0] = 0;
}

void CpuBackend::JoinShortcut(const Step& step, const ExpertExchange* exchange) {
  ForRows(step, c_.topk * c_.hidden, [&](int row, int thread) {
    if (exchange != nullptr) {
      PutIdentity(row);
      exchange->AddResults(row, &m_[Area(row, c_.hidden)]);
    } else if (combine() == CombineMode::kPerExpert) {
      CombineInOrder(row, thread);
    } else {
      Combine(row, thread);
    }
  });
  pending_ = Pending::kBranchAndShortcut;
}

void CpuBackend::Combine(int row, int thread) {
  const float** sources = &sources_[Area(thread, c_.topk + 1)];
  float* weights = &source_weights_[Area(thread, c_.topk + 1)];
  int count = 0;
  float identity = 0;
  for (int k = 0; k < c_.topk; ++k) {
    const size_t i = Area(row, c_.topk) + static_cast<size_t>(k);
    if (place_[i] < 0) {
      identity += chosen_weights_[i];
    } else {
      sources[count] = &expert_out_[Area(place_[i], c_.hidden)];
      weights[count++] = chosen_weights_[i];
    }
  }
  if (identity != 0) {
    sources[count] = &branch_[Area(row, c_.hidden)];
    weights[count++] = identity;
  }
  path_.pointwise->weighted_sum(sources, weights, count, c_.hidden, &m_[Area(row, c_.hidden)]);
}

void CpuBackend::PutIdentity(int row) {
  float identity = 0;
  for (size_t i = Area(row, c_.topk); i < Area(row + 1, c_.topk); ++i) {
    if (chosen_[i] >= c_.experts) identity += chosen_weights_[i];
  }
  const float* n = &branch_[Area(row, c_.hidden)];
  path_.pointwise->weighted_sum(&n, &identity, identity != 0 ? 1 : 0, c_.hidden, &m_[Area(row, c_.hidden)]);
}

void CpuBackend::CombineInOrder(int row, int thread) {
  PutIdentity(row);
  auto* const travelling = reinterpret_cast<std::byte*>(&sums_[Area(thread, c_.hidden)]);
  int32_t last = -1;
  for (int k = 0; k < c_.topk; ++k) {
    // The choice of the lowest expert above the last one: topk is about a dozen.
    size_t next = Area(row + 1, c_.topk);
    for (size_t i = Area(row, c_.topk); i < Area(row + 1, c_.topk); ++i) {
      if (place_[i] >= 0 && chosen_[i] > last && (next == Area(row + 1, c_.topk) || chosen_[i] < chosen_[next])) next = i;
    }
    if (next == Area(row + 1, c_.topk)) return;
    last = chosen_[next];
    row_format_.EncodeResult(&expert_out_[Area(place_[next], c_.hidden)], travelling);
    row_format_.AddResult(travelling, chosen_weights_[next], &m_[Area(row, c_.hidden)]);
  }
}

// Packed one after the other: gate, up, down, each with what belongs to it.
std::span<const std::byte> CpuBackend::ExpertWeights(int layer, int expert) const {
  const CpuMlp& mlp = weights_.layer(layer).experts[static_cast<size_t>(expert)];
  const auto panels = static_cast<size_t>((mlp.down.out + kPanel - 1) / kPanel);
  return {mlp.gate.weight, mlp.down.weight + panels * PanelBytes(mlp.down.format, mlp.down.in)};
}

void CpuBackend::MakeRoom(int ranks) {
  // Rows of a step, then those of the group that are not read as they were made.
  const size_t rows = Area(ranks + (deterministic_ ? 1 : 0), max_rows_);
  const size_t choices = Area(ranks, max_rows_) * static_cast<size_t>(std::min(c_.topk, c_.experts));
  const auto untouched = [](size_t values) { return std::make_unique_for_overwrite<float[]>(values); };
  branch_ = untouched(rows * static_cast<size_t>(c_.hidden));
  expert_wide_ = untouched(choices * static_cast<size_t>(c_.expert_ffn));
  expert_out_ = untouched(choices * static_cast<size_t>(c_.hidden));
  place_.resize(std::max(choices, chosen_.size()));
  assigned_.resize(choices);
  first_choice_.resize(rows);
  choice_rows_.reserve(choices);
  choice_experts_.reserve(choices);
}

}  // namespace margay
