// Attention of the cpu backend (spec 3): the latent KV rows, the absorbed queries, the output projection.
#include <algorithm>

#include "model/cpu/cpu_backend.h"

namespace margay {
namespace {

constexpr int64_t kSerialAttention = 192 << 10;  // products below which threads cost more than they bring

int RoundUp(int n, int to) { return (n + to - 1) / to * to; }

}  // namespace

void CpuBackend::WriteKv(const Step& step, int layer, int half) {
  const CpuAttention& a = weights_.layer(layer).attention[half];
  ForRows(step, c_.hidden, [&](int row) { Norm(x_, a.input_norm, row, n_); });
  jobs_ = {Job(a.q_a, n_.data(), step, q_a_.data()), Job(a.kv_a, n_.data(), step, kv_.data())};
  matmul_.Run(jobs_);
  ForRows(step, c_.q_lora + c_.kv_row(), [&](int row) {
    float* q_a = &q_a_[Area(row, c_.q_lora)];
    path_.pointwise->rms_norm(q_a, a.q_a_norm, c_.q_lora, latent_eps_, q_a);
    float* kv = &kv_[Area(row, c_.kv_row())];
    path_.pointwise->rms_norm(kv, a.kv_a_norm, c_.kv_lora, latent_eps_, kv);
    Rotate(kv + c_.kv_lora, row, kv + c_.kv_lora);
    std::byte* to = step.KvRow(2 * layer + half, step.rows[static_cast<size_t>(row)]);
    path_.pointwise->to_bf16(kv, c_.kv_row(), reinterpret_cast<uint16_t*>(to));
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
  const auto tile = [&](int item, int thread) { AttendTile(step, 2 * layer + half, items_[static_cast<size_t>(item)], thread); };
  const auto tiles = static_cast<int>(items_.size());
  if (attention_products_ <= kSerialAttention) {
    for (int item = 0; item < tiles; ++item) tile(item, 0);
  } else {
    pool_->Run(tiles, tile);
  }
  jobs_.clear();
  for (int head = 0; head < c_.heads; ++head) {
    MatmulJob job = Job(a.value[static_cast<size_t>(head)], context_.data() + Area(head, c_.kv_lora), step, heads_out_.data() + Area(head, c_.v_head));
    job.x_stride = c_.heads * c_.kv_lora;
    job.y_stride = c_.heads * c_.v_head;
    jobs_.push_back(job);
  }
  matmul_.Run(jobs_);
  RunOne(Job(a.o, heads_out_.data(), step, y_.data()));
  ForRows(step, c_.hidden, [&](int row) {
    Accumulate(y_, row);
    Norm(x_, a.post_norm, row, n_);
  });
}

void CpuBackend::Rotate(const float* from, int row, float* to) const {
  const float* cosine = &cosine_[Area(row, rotary_.pairs())];
  const float* sine = &sine_[Area(row, rotary_.pairs())];
  for (int i = 0; i < rotary_.pairs(); ++i) {
    const float even = from[2 * i];
    const float odd = from[2 * i + 1];
    to[2 * i] = even * cosine[i] - odd * sine[i];
    to[2 * i + 1] = odd * cosine[i] + even * sine[i];
  }
}

void CpuBackend::CutAttention(const Step& step) {
  const int all = static_cast<int>(step.rows.size()) * c_.heads;
  const int most = std::clamp(RoundUp(all / (2 * pool_->threads()), 4), 4, kAttentionQueries);
  items_.clear();
  attention_products_ = 0;
  int first = 0;
  for (const SequenceRows& sequence : step.sequences) {
    attention_products_ += int64_t{sequence.count} * c_.heads * (sequence.position + sequence.count) * (c_.kv_row() + c_.kv_lora);
    const int end = first + sequence.count * c_.heads;
    for (; first < end; first += std::min(most, end - first)) items_.push_back({first, std::min(most, end - first), sequence.block_table});
  }
}

void CpuBackend::AttendTile(const Step& step, int attention, const AttentionItem& item, int thread) {
  const auto first = static_cast<size_t>(item.first);
  const AttentionTile tile = {.q = &queries_[first * static_cast<size_t>(query_width_)],
                              .q_stride = query_width_,
                              .queries = item.count,
                              .visible = &visible_[first],
                              .pages = reinterpret_cast<const uint8_t*>(step.kv.page(attention, 0)),
                              .page_bytes = static_cast<int64_t>(step.kv.layout.page_bytes()),
                              .block_table = item.block_table,
                              .latent = c_.kv_lora,
                              .rope = c_.rope,
                              .out = &context_[first * static_cast<size_t>(c_.kv_lora)],
                              .out_stride = c_.kv_lora,
                              .scratch = &scratch_[Area(thread, kAttentionScratch)]};
  path_.attention->attend(&tile);
}

}  // namespace margay
