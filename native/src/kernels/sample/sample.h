// Choice of the next token. One call per sequence; a function of its arguments and the code path alone, so the same seed
// gives the same token whatever else is in the batch, on any number of threads. The vocabulary is passed over a few times
// and never sorted.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/sample/sample_kernels.h"

namespace margay {

// Mirrors Sampling in control-plane/protocol/request.ts; neutral values are the defaults.
struct SampleParams {
  float temperature = 0;  // 0: greedy
  int top_k = 0;          // 0: all
  float top_p = 1;
  float min_p = 0;
  uint64_t seed = 0;
  float frequency_penalty = 0;
  float presence_penalty = 0;
  float repetition_penalty = 1;
  std::vector<int32_t> bias_ids = {};
  std::vector<float> bias_values = {};
  std::vector<int32_t> banned = {};  // tokens that may not be chosen (stop tokens before minNewTokens)
  std::span<const uint32_t> allowed = {};  // a bit per token that may be chosen; empty: all may
  int top_logprobs = -1;        // -1: no log-probabilities

  // Whether a token depends on those before it by more than its logits.
  bool UsesHistory() const { return frequency_penalty != 0 || presence_penalty != 0 || repetition_penalty != 1; }
};

struct Sampled {
  int32_t token = -1;  // -1: a logit was not a number
  float logprob = 0;   // of `token`, under the raw distribution (before temperature and filters)
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
};

struct Proposed {
  int32_t token = -1;     // -1: a logit was not a number
  float probability = 0;  // of `token`, at temperature 1 after penalties
};

// Owns the scratch of one thread's choices, so that a token costs no allocation.
class Sampler {
 public:
  explicit Sampler(const SampleKernels* kernels) : kernels_(kernels) {}

  // logits: [vocab], overwritten. history: prompt and generated tokens; generated ones start at prompt_length.
  // position: absolute position of the token being chosen; draws are a function of (seed, position).
  Sampled Sample(std::span<float> logits, const SampleParams& params, std::span<const int32_t> history, int prompt_length,
                 int position);

  // What Sample would choose, from the logits of a draft layer. With the same arguments it draws the same number, so the
  // two agree as far as their logits do.
  Proposed Propose(std::span<float> logits, const SampleParams& params, std::span<const int32_t> history,
                   int prompt_length, int position);

 private:
  // A vocabulary with what one pass over it found.
  struct Scanned {
    std::span<const float> logits;
    float top = 0;
    bool finite = true;
  };

  Scanned Scan(std::span<const float> logits);
  void Penalise(std::span<float> logits, const SampleParams& params, std::span<const int32_t> history, int prompt_length);
  int32_t Choose(const Scanned& scanned, const SampleParams& params, int position);
  int32_t Best(const Scanned& scanned) const;
  int32_t Draw(const Scanned& scanned, const SampleParams& params, int position);
  int32_t DrawFromAll(const Scanned& scanned, float inverse_temperature, double share);
  int32_t DrawFromCandidates(const Scanned& scanned, float inverse_temperature, double share);
  // candidates_ = all ids whose logit is at least `least`, in order.
  void Gather(const Scanned& scanned, float least);
  // candidates_ = the best `count`, and perhaps more, in order.
  void GatherBest(const Scanned& scanned, size_t count);
  // candidates_ = the best `count`, in no order.
  void KeepBest(const Scanned& scanned, size_t count);
  // candidates_ = the shortest run of best ones whose mass reaches top_p of all's, in no order.
  void KeepTopP(const Scanned& scanned, float top_p, float inverse_temperature, bool from_all);
  // Drops candidates that cannot be in that run; returns how many of the first are in it for certain, and their mass.
  std::pair<size_t, double> Narrow(double wanted);
  void KeepMinP(const Scanned& scanned, float min_p, float inverse_temperature, bool from_all);
  // The candidate at which `sum` and the masses so far reach `wanted`.
  int32_t Walk(double sum, double wanted) const;
  // masses_ = those of candidates_.
  void Weigh(const Scanned& scanned, float inverse_temperature);

  const SampleKernels* kernels_;
  std::vector<float> tops_;  // per group of logits
  std::vector<float> sorted_tops_;
  std::vector<float> raw_;
  std::vector<int32_t> counts_;  // all zero between calls
  std::vector<int32_t> found_;     // [vocab]
  std::vector<int32_t> certain_;
  std::vector<int32_t> candidates_;
  std::vector<float> values_;
  std::vector<float> masses_;
  std::vector<double> block_masses_;
  std::vector<double> bin_masses_;
};

}  // namespace margay
