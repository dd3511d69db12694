// Attention of the cpu backend (spec 3): the latent KV rows, the absorbed queries, the output projection.
#include "model/cpu/cpu_backend.h"

namespace margay {

void CpuBackend::WriteKv(const Step& step, int layer, int half) {
  const CpuAttention& a = weights_.layer(layer).attention[half];
  Settle(step, a.input_norm);
  jobs_ = {Job(a.q_a, n_.data(), step, q_a_.data()), Job(a.kv_a, n_.data(), step, kv_.data())};
  matmul_.Run(jobs_);
  ForRows(step, c_.q_lora + c_.kv_row(), [&](int row) {
    float* q_a = &q_a_[Area(row, c_.q_lora)];
    path_.pointwise->rms_norm(q_a, a.q_a_norm, c_.q_lora, latent_eps_, q_a);
    float* kv = &kv_[Area(row, c_.kv_row())];
    auto* to = reinterpret_cast<uint16_t*>(step.KvRow(2 * layer + half, step.rows[static_cast<size_t>(row)]));
    path_.pointwise->rms_norm_bf16(kv, a.kv_a_norm, c_.kv_lora, latent_eps_, to);
    Rotate(kv + c_.kv_lora, row, kv + c_.kv_lora);
    path_.pointwise->to_bf16(kv + c_.kv_lora, c_.rope, to + c_.kv_lora);
  });
}

void CpuBackend::Attend(const Step& step, int layer, int half) {
  const CpuAttention& a = weights_.layer(layer).attention[half];
  RunOne(Job(a.q_b, q_a_.data(), step, q_.data()));
  jobs_.clear();
  for (int head = 0; head < c_.heads; ++head) {
    MatmulJob job = Job(a.key[static_cast<size_t>(head)], q_.data() + Area(head, c_.qk_head()), step, queries_.data() + Area(head, query_width_));
    job.x_stride = c_.heads * c_.qk_head();
    job.y_stride = c_.heads * query_width_;
    jobs_.push_back(job);
  }
  matmul_.Run(jobs_);
  ForRows(step, c_.heads * c_.rope, [&](int row) {
    for (int head = 0; head < c_.heads; ++head) {
      const size_t i = Area(row, c_.heads) + static_cast<size_t>(head);
      Rotate(&q_[i * static_cast<size_t>(c_.qk_head())] + c_.nope, row, &queries_[i * static_cast<size_t>(query_width_)] + c_.kv_lora);
    }
  });
  attention_.Run(queries_.data(), query_width_, reinterpret_cast<const uint8_t*>(step.kv.page(2 * layer + half, 0)), context_.data());
  jobs_.clear();
  for (int head = 0; head < c_.heads; ++head) {
    MatmulJob job = Job(a.value[static_cast<size_t>(head)], context_.data() + Area(head, c_.kv_lora), step, heads_out_.data() + Area(head, c_.v_head));
    job.x_stride = c_.heads * c_.kv_lora;
    job.y_stride = c_.heads * c_.v_head;
    jobs_.push_back(job);
  }
  matmul_.Run(jobs_);
  RunOne(Job(a.o, heads_out_.data(), step, y_.data()));
  pending_ = Pending::kBranch;
  Settle(step, a.post_norm);
}

void CpuBackend::PlanAttention(const Step& step) {
  sequences_.clear();
  for (const SequenceRows& sequence : step.sequences) sequences_.push_back({sequence.count, sequence.position, sequence.block_table});
  attention_.Cut(sequences_);
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
