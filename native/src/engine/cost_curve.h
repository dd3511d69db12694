// What a pass over so many rows takes: measured as passes are made, never assumed.
//
// Owns one average per number of rows. Costs move together when contexts grow or the machine slows down, so a pass that
// took longer than expected lifts all averages a little and its own the most.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace margay {

class CostCurve {
 public:
  // For 0 to `most` rows.
  explicit CostCurve(int most) : points_(static_cast<size_t>(most) + 1) {}

  void Observe(int rows, double ms);
  // Between numbers of rows that were seen a straight line; beyond them, as far as a quarter of the rows, a guess.
  std::optional<double> At(int rows) const;

 private:
  struct Point {
    double ms = 0;
    int visits = 0;
    int64_t last = 0;  // observation
  };

  std::vector<Point> points_;
  int64_t observations_ = 0;
};

}  // namespace margay
