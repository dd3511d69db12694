// Numbers for tests of kernels, and the largest error seen over many shapes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace margay::tests {

class Random {
 public:
  float Next() {
    state_ = state_ * 6364136223846793005 + 1442695040888963407;
    return static_cast<float>(static_cast<int32_t>(state_ >> 33) % 2001 - 1000) / 500.0F;
  }
  int Below(int n) {
    Next();
    return static_cast<int>((state_ >> 33) % static_cast<uint64_t>(n));
  }
  std::vector<float> Floats(int n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = Next();
    return values;
  }

 private:
  uint64_t state_ = 7;
};

struct Tally {
  int shapes = 0;
  double worst = 0;
  void Add(double got, double want, double scale) {
    const double error = std::fabs(got - want) / (scale + 1e-30);
    worst = std::isnan(error) || std::isnan(got) ? INFINITY : std::max(worst, error);
  }
  void Print(const std::string& path, const char* op) const {
    std::printf("{\"path\":\"%s\",\"op\":\"%s\",\"shapes\":%d,\"worst\":%g}\n", path.c_str(), op, shapes, std::isinf(worst) ? 1e30 : worst);
  }
};

}  // namespace margay::tests
