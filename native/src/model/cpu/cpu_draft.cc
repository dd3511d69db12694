// The input of the draft layer on the cpu backend (spec 7.1); the layer itself is an attention and an MLP like any other.
#include "model/cpu/cpu_backend.h"

namespace margay {

void CpuBackend::EmbedDraft(const Step& step, std::span<const int> sources, FinalNorm made_by) {
  const CpuDraft& draft = weights_.draft();
  EmbedInto(n_, draft.embedding, step);
  ForRows(step, 3 * c_.hidden, [&](int row) {
    float* embedded = &joined_[2 * Area(row, c_.hidden)];
    float* hidden = embedded + c_.hidden;
    const float* x = &x_[Area(sources[static_cast<size_t>(row)], c_.hidden)];
    path_.pointwise->rms_norm(&n_[Area(row, c_.hidden)], draft.embedding_norm, c_.hidden, c_.rms_eps, embedded);
    path_.pointwise->rms_norm(x, NormBeforeHead(made_by), c_.hidden, c_.rms_eps, hidden);
    path_.pointwise->rms_norm(hidden, draft.hidden_norm, c_.hidden, c_.rms_eps, hidden);
  });
  RunOne(Job(draft.join, joined_.data(), step, x_.data()));
}

void CpuBackend::Narrow(const Step& step, std::span<const int> kept) {
  for (size_t i = 0; i < kept.size(); ++i) {
    if (kept[i] == static_cast<int>(i)) continue;
    std::copy_n(&x_[Area(kept[i], c_.hidden)], c_.hidden, &x_[i * static_cast<size_t>(c_.hidden)]);
    std::copy_n(&q_a_[Area(kept[i], c_.q_lora)], c_.q_lora, &q_a_[i * static_cast<size_t>(c_.q_lora)]);
  }
  PlanAttention(step);
}

}  // namespace margay
