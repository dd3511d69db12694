// Choice of the next token. One call per sequence; a function of its arguments alone, so the same seed gives the same
// token whatever else is in the batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

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

// logits: [vocab], overwritten. history: prompt and generated tokens; generated ones start at prompt_length.
// position: absolute position of the token being chosen; draws are a function of (seed, position).
Sampled Sample(std::span<float> logits, const SampleParams& params, std::span<const int32_t> history, int prompt_length,
               int position);

struct Proposed {
  int32_t token = -1;     // -1: a logit was not a number
  float probability = 0;  // of `token`, at temperature 1 after penalties
};

// What Sample would choose, from the logits of a draft layer. With the same arguments it draws the same number, so the
// two agree as far as their logits do.
Proposed Propose(std::span<float> logits, const SampleParams& params, std::span<const int32_t> history,
                 int prompt_length, int position);

}  // namespace margay
