// The draft layer in double precision, written from the specification (section 7.1) and from nothing else: keys and values
// expanded, every row computed again from the first one on.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "golden_file.h"
#include "model/model_config.h"
#include "weights/checkpoint.h"

namespace margay::tests {

using Numbers = std::vector<double>;

class PlainDraft {
 public:
  PlainDraft(const std::string& folder, double latent_eps)
      : checkpoint_(OrDie(Checkpoint::Open(folder))),
        c_(OrDie(ParseModelConfig(checkpoint_.config(), checkpoint_.generation_config()))),
        latent_eps_(latent_eps) {}

  // Row i joins hidden[i] with the embedding of next[i]; all rows but the last are only looked back at. Returns the last
  // row's hidden state after the final norm.
  Numbers Hidden(const std::vector<Numbers>& hidden, const std::vector<int32_t>& next) {
    std::vector<Numbers> joined;
    for (size_t i = 0; i < hidden.size(); ++i) {
      Numbers both = Norm(Row("model.mtp.embed_tokens.weight", next[i]), Layer("enorm.m"), c_.rms_eps);
      const Numbers normed = Norm(hidden[i], Layer("hnorm.m"), c_.rms_eps);
      both.insert(both.end(), normed.begin(), normed.end());
      joined.push_back(Times(Layer("eh_proj"), both));
    }
    Numbers x = joined.back();
    Add(&x, Attend(joined));
    const Numbers n = Norm(x, Layer("post_attention_layernorm"), c_.rms_eps);
    const std::string mlp = "transformer_layer.mlp.";
    Numbers gate = Times(Layer(mlp + "gate_proj"), n);
    const Numbers up = Times(Layer(mlp + "up_proj"), n);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    Add(&x, Times(Layer(mlp + "down_proj"), gate));
    return Norm(x, "model.mtp.norm.weight", c_.rms_eps);
  }

  Numbers Logits(const Numbers& hidden) { return Times("lm_head.weight", hidden); }

 private:
  static std::string Layer(const std::string& name) { return "model.mtp.layers.0." + name + ".weight"; }

  Numbers Attend(const std::vector<Numbers>& joined) {
    const auto last = static_cast<int>(joined.size()) - 1;
    const double s_q = std::sqrt(double{1} * c_.hidden / c_.q_lora);
    const double s_kv = std::sqrt(double{1} * c_.hidden / c_.kv_lora);
    const int width = c_.nope + c_.rope;
    Numbers n = Norm(joined.back(), Layer("input_layernorm"), c_.rms_eps);
    Numbers q = Times(Layer("self_attn.q_b_proj"),
                      Norm(Times(Layer("self_attn.q_a_proj"), n), Layer("self_attn.q_a_layernorm"), latent_eps_));
    for (double& value : q) value *= s_q;
    for (int head = 0; head < c_.heads; ++head) Rotate(&q[static_cast<size_t>(head * width + c_.nope)], last);
    std::vector<Numbers> keys;    // per row: [heads][nope], then the rope part that all heads share
    std::vector<Numbers> values;  // per row: [heads][v_head]
    for (int row = 0; row <= last; ++row) {
      n = Norm(joined[static_cast<size_t>(row)], Layer("input_layernorm"), c_.rms_eps);
      Numbers latent = Times(Layer("self_attn.kv_a_proj_with_mqa"), n);
      Numbers rope(latent.begin() + c_.kv_lora, latent.end());
      Rotate(rope.data(), row);
      latent.resize(static_cast<size_t>(c_.kv_lora));
      latent = Norm(latent, Layer("self_attn.kv_a_layernorm"), latent_eps_);
      for (double& value : latent) value *= s_kv;
      const Numbers kv = Times(Layer("self_attn.kv_b_proj"), latent);
      Numbers& key = keys.emplace_back();
      Numbers& value = values.emplace_back();
      for (int head = 0; head < c_.heads; ++head) {
        const auto at = kv.begin() + head * (c_.nope + c_.v_head);
        key.insert(key.end(), at, at + c_.nope);
        value.insert(value.end(), at + c_.nope, at + c_.nope + c_.v_head);
      }
      key.insert(key.end(), rope.begin(), rope.end());
    }
    Numbers out;
    for (int head = 0; head < c_.heads; ++head) {
      Numbers weights;
      double sum = 0;
      for (const Numbers& key : keys) {
        double score = 0;
        for (int i = 0; i < width; ++i) {
          const int k = i < c_.nope ? head * c_.nope + i : c_.heads * c_.nope + i - c_.nope;
          score += q[static_cast<size_t>(head * width + i)] * key[static_cast<size_t>(k)];
        }
        weights.push_back(std::exp(score / std::sqrt(double(width))));
        sum += weights.back();
      }
      for (int i = 0; i < c_.v_head; ++i) {
        double mean = 0;
        for (size_t row = 0; row < values.size(); ++row) {
          mean += weights[row] / sum * values[row][static_cast<size_t>(head * c_.v_head + i)];
        }
        out.push_back(mean);
      }
    }
    return Times(Layer("self_attn.o_proj"), out);
  }

  void Rotate(double* x, int position) const {
    for (int i = 0; i < c_.rope / 2; ++i) {
      const double angle = position * std::pow(c_.rope_config.theta, -2.0 * i / c_.rope);
      const double even = x[2 * i];
      const double odd = x[2 * i + 1];
      x[2 * i] = even * std::cos(angle) - odd * std::sin(angle);
      x[2 * i + 1] = odd * std::cos(angle) + even * std::sin(angle);
    }
  }

  Numbers Norm(const Numbers& x, const std::string& weight, double eps) {
    double sum = 0;
    for (const double value : x) sum += value * value;
    const double inverse = 1 / std::sqrt(sum / static_cast<double>(x.size()) + eps);
    const std::vector<float>& w = Matrix(weight);
    Numbers y(x);
    for (size_t i = 0; i < y.size(); ++i) y[i] *= inverse * double{w[i]};
    return y;
  }

  Numbers Times(const std::string& weight, const Numbers& x) {
    const std::vector<float>& w = Matrix(weight);
    Numbers y(w.size() / x.size());
    for (size_t i = 0; i < w.size(); ++i) y[i / x.size()] += double{w[i]} * x[i % x.size()];
    return y;
  }

  Numbers Row(const std::string& table, int32_t row) {
    const std::vector<float>& w = Matrix(table);
    const auto at = w.begin() + std::ptrdiff_t{row} * c_.hidden;
    return Numbers(at, at + c_.hidden);
  }

  static void Add(Numbers* x, const Numbers& y) {
    for (size_t i = 0; i < y.size(); ++i) (*x)[i] += y[i];
  }

  const std::vector<float>& Matrix(const std::string& name) {
    std::vector<float>& values = matrices_[name];
    if (!values.empty()) return values;
    const Tensor* tensor = checkpoint_.Find(name);
    if (tensor == nullptr) OrDie(Status(Code::kCheckpoint, name + " is missing"));
    const int64_t rows = tensor->shape.size() == 1 ? 1 : tensor->shape[0];
    values.resize(static_cast<size_t>(rows * tensor->shape.back()));
    OrDie(checkpoint_.ReadRows(*tensor, nullptr, 0, rows, values.data()));
    return values;
  }

  const Checkpoint checkpoint_;
  const ModelConfig c_;
  const double latent_eps_;
  std::map<std::string, std::vector<float>> matrices_;
};

}  // namespace margay::tests
