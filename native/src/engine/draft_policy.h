// Who drafts: decided before every draft pass out of what passes were seen to cost and drafts to bring.
//
// A stream that drafts costs its part of the draft pass and of the rows of the next step, and brings the drafts that are
// accepted. Where weights are read for a few rows that is a bargain; where every row computes it may be a loss. A stream
// that does not draft still gets its row of the draft layer's KV, so it may draft again at any step.
//
// Owns the measurements of one engine. D1 decisions depend on what was told to it alone. D2 the choice that is not
// taken is tried for one step now and then, the more seldom the longer nothing changes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "engine/cost_curve.h"

namespace margay {

class DraftPolicy {
 public:
  // most_rows: of a step; drafts: most per stream.
  DraftPolicy(int most_rows, int drafts);

  // The target's part of a step in which nothing but the batch ran.
  void StepTook(int rows, double ms) { step_.Observe(rows, ms); }
  // A draft pass over `streams`, of which `drafting` got drafts.
  void PassTook(int streams, int drafting, double ms) { (drafting > 0 ? draft_ : fill_).Observe(drafting > 0 ? drafting : streams, ms); }
  // A stream that drafted had `rows` verified and `accepted` of them become tokens. `yield`: its own average, brought up to date.
  void Verified(int rows, int accepted, float* yield);
  // The average slips towards everyone's, so that a stream that does not draft is given another chance.
  void SatOut(float* yield) const { *yield += kForget * (mean_yield_ - *yield); }
  // Tokens that a stream nothing is known of may expect of its drafts, a step.
  float mean_yield() const { return mean_yield_; }

  // How many of `streams`, the most promising first, are to draft for their next step. `yields`: of those that can, falling.
  int Choose(std::span<const float> yields, int streams);
  // The same without trying anything: the number with which most tokens a millisecond are expected; nothing: not known.
  std::optional<int> Best(std::span<const float> yields, int streams) const;

 private:
  static constexpr float kForget = 0.01F;
  static constexpr int64_t kFirstTrial = 16;
  static constexpr int64_t kMostTrial = 512;

  CostCurve step_;   // by rows
  CostCurve draft_;  // by streams that draft
  CostCurve fill_;   // by streams, when none drafts
  float mean_yield_;
  double rows_each_ = 1;  // verified per stream that drafts
  bool drafting_ = true;
  int streams_ = 0;  // when the trials began to be spread out
  int64_t steps_ = 0;
  int64_t trial_ = kFirstTrial;  // steps between two
  int64_t next_trial_ = kFirstTrial;
};

}  // namespace margay
