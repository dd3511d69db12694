// Cosines and sines of the rotary embedding of one position (spec 3.3).
#pragma once

#include <cmath>
#include <vector>

#include "model/model_config.h"

namespace margay {

class Rotary {
 public:
  explicit Rotary(const ModelConfig& config) : frequencies_(config.InverseFrequencies()), amplitude_(config.RopeAmplitude()) {}
  int pairs() const { return static_cast<int>(frequencies_.size()); }
  // Angles are products of fp32 numbers, as in the reference implementation.
  void At(int position, float* cosine, float* sine) const {
    for (size_t i = 0; i < frequencies_.size(); ++i) {
      const float angle = static_cast<float>(position) * frequencies_[i];
      cosine[i] = std::cos(angle) * amplitude_;
      sine[i] = std::sin(angle) * amplitude_;
    }
  }

 private:
  std::vector<float> frequencies_;
  float amplitude_;
};

}  // namespace margay
