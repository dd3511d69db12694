// Attention of the cpu backend (spec 3): the latent KV rows, the absorbed queries, the output projection.
#include <algorithm>

#include "model/cpu/cpu_backend.h"

namespace margay {

void CpuBackend::WriteKv(const Step& step, int layer, int half) {
  const CpuAttention& a = weights_.layer(layer).attention[half];
  const bool attends = layer < c_.layers || !step.wanted.empty();  // rows of a draft that are not asked for end here
  Settle(step, a.input_norm, n_.data());
  jobs_ = {Job(a.kv_a, n_.data(), step, kv_.data())};
  if (attends) jobs_.push_back(Job(a.q_a, n_.data(), step, q_a_.data()));
  matmul_.Run(jobs_);
  ForRows(step, c_.q_lora + c_.kv_row(), [&](int row) {
    float* q_a = &q_a_[Area(row, c_.q_lora)];
    if (attends) path_.pointwise->rms_norm(q_a, a.q_a_norm, c_.q_lora, latent_eps_, q_a);
    float* kv = &kv_[Area(row, c_.kv_row())];
    auto* to = reinterpret_cast<uint16_t*>(step.KvRow(2 * layer + half, step.rows[static_cast<size_t>(row)]));
    path_.pointwise->rms_norm_bf16(kv, a.kv_a_norm, c_.kv_lora, latent_eps_, to);
    Rotate(kv + c_.kv_lora, row, kv + c_.kv_lora);
    path_.pointwise->to_bf16(kv + c_.kv_lora, c_.rope, to + c_.kv_lora);
  });
}

void CpuBackend::Attend(const Step& step, int layer, int half, ExpertExchange* exchange) {
  const CpuAttention& a = weights_.layer(layer).attention[half];
  const auto* pages = reinterpret_cast<const uint8_t*>(step.kv.page(2 * layer + half, 0));
  RunOne(Job(a.q_b, q_a_.data(), step, q_.data()));
  ForRows(step, c_.heads * c_.rope, [&](int row) {
    for (int head = 0; head < c_.heads; ++head) {
      const size_t i = Area(row, c_.heads) + static_cast<size_t>(head);
      float* part = &q_[i * static_cast<size_t>(c_.qk_head())] + c_.nope;
      const bool absorbed = absorbed_[static_cast<size_t>(row)] != 0;
      Rotate(part, row, absorbed ? &queries_[i * static_cast<size_t>(query_width_)] + c_.kv_lora : part);
    }
  });
  Absorb(a, pages);
  expanded_.Run(q_.data(), pages, a.expand, heads_out_.data());
  RunOne(Job(a.o, heads_out_.data(), step, y_.data()));
  pending_ = Pending::kBranch;
  Settle(step, a.post_norm, NormOf(half), exchange);
}

// The absorbed form (spec 3.5), for the rows that have it: queries to the latent, attention over it, values out of it.
void CpuBackend::Absorb(const CpuAttention& a, const uint8_t* pages) {
  const int q_stride = c_.heads * c_.qk_head();
  for (const RowRange& rows : absorbed_rows_) {
    jobs_.clear();
    for (int head = 0; head < c_.heads; ++head) {
      jobs_.push_back({.w = a.key[static_cast<size_t>(head)],
                       .x = &q_[Area(rows.first, q_stride) + Area(head, c_.qk_head())],
                       .x_stride = q_stride,
                       .rows = rows.count,
                       .y = &queries_[Area(rows.first, c_.heads * query_width_) + Area(head, query_width_)],
                       .y_stride = c_.heads * query_width_});
    }
    matmul_.Run(jobs_);
  }
  attention_.Run(queries_.data(), query_width_, pages, context_.data());
  for (const RowRange& rows : absorbed_rows_) {
    jobs_.clear();
    for (int head = 0; head < c_.heads; ++head) {
      jobs_.push_back({.w = a.value[static_cast<size_t>(head)],
                       .x = &context_[Area(rows.first, c_.heads * c_.kv_lora) + Area(head, c_.kv_lora)],
                       .x_stride = c_.heads * c_.kv_lora,
                       .rows = rows.count,
                       .y = &heads_out_[Area(rows.first, c_.heads * c_.v_head) + Area(head, c_.v_head)],
                       .y_stride = c_.heads * c_.v_head});
    }
    matmul_.Run(jobs_);
  }
}

void CpuBackend::PlanAttention(const Step& step) {
  to_absorb_.clear();
  to_expand_.clear();
  absorbed_rows_.clear();
  int row = 0;
  for (const SequenceRows& sequence : step.sequences) {
    const AttentionRows rows{row, sequence.count, sequence.position, sequence.block_table};
    const bool absorbed = deterministic_ || !ExpandingPays(expanded_.shape(), rows);
    std::fill_n(&absorbed_[static_cast<size_t>(row)], sequence.count, static_cast<uint8_t>(absorbed));
    row += sequence.count;
    if (!absorbed) {
      to_expand_.push_back(rows);
      continue;
    }
    const bool adjoins = !absorbed_rows_.empty() && absorbed_rows_.back().first + absorbed_rows_.back().count == rows.first_row;
    if (!adjoins) absorbed_rows_.push_back({rows.first_row, 0});
    absorbed_rows_.back().count += rows.count;
    to_absorb_.push_back(rows);
  }
  attention_.Cut(to_absorb_);
  expanded_.Cut(to_expand_);
  ForRows(step, 8 * c_.rope, [&](int row) {
    float* cosine = &cosine_[Area(row, c_.rope)];
    float* sine = &sine_[Area(row, c_.rope)];
    rotary_.At(step.rows[static_cast<size_t>(row)].position, cosine, sine);
    for (int i = rotary_.pairs() - 1; i >= 0; --i) {  // each pair's, spread over its two values
      cosine[2 * i + 1] = cosine[2 * i] = cosine[i];
      sine[2 * i + 1] = sine[i];
      sine[2 * i] = -sine[2 * i + 1];
    }
  });
}

void CpuBackend::Rotate(const float* from, int row, float* to) const {
  path_.attention->rotate(from, &cosine_[Area(row, c_.rope)], &sine_[Area(row, c_.rope)], c_.rope, to);
}

}  // namespace margay
