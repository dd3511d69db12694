// draft_policy: who drafts, on machines whose costs are known.
#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "claim.h"
#include "engine/draft_policy.h"

namespace margay {
namespace {

// A machine, and streams whose drafts are right with a probability each.
struct World {
  std::function<double(int rows)> step_ms;
  double draft_ms = 0.1;       // of a pass, and of each stream in it
  double draft_each_ms = 0.02;
  double fill_each_ms = 0.003;
  double noise = 0;            // share by which measurements are off
  double stolen = 0;           // share of passes that another process takes the core from, threefold
  double drift = 0;            // growth of all costs per step
};

// `steps` of these streams; returns tokens a millisecond, and of how many draft chances one was taken.
struct Outcome {
  double rate = 0;
  double drafted = 0;
  std::vector<int> by_stream;
};

enum class Who { kPolicy, kAll, kNobody };

class Run {
 public:
  Run(World world, unsigned seed) : world_(std::move(world)), random_(seed) {}

  Outcome Steps(const std::vector<double>& right, int steps, Who who) {
    const auto streams = static_cast<int>(right.size());
    std::vector<float> yields(right.size(), policy_.mean_yield());
    std::vector<bool> drafted(right.size(), false);
    Outcome outcome;
    outcome.by_stream.assign(right.size(), 0);
    double tokens = 0, ms = 0, chances = 0, taken = 0;
    for (int step = 0; step < steps; ++step) {
      scale_ *= 1 + world_.drift;
      const auto rows = streams + static_cast<int>(std::count(drafted.begin(), drafted.end(), true));
      policy_.StepTook(rows, Measured(world_.step_ms(rows), &ms));
      for (size_t i = 0; i < right.size(); ++i) {
        const bool met = drafted[i] && std::uniform_real_distribution<>()(random_) < right[i];
        tokens += met ? 2 : 1;
        if (drafted[i]) policy_.Verified(1, met ? 1 : 0, &yields[i]);
        else policy_.SatOut(&yields[i]);
      }
      std::vector<size_t> order(right.size());
      std::iota(order.begin(), order.end(), size_t{0});
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return yields[a] > yields[b]; });
      std::vector<float> sorted;
      for (const size_t i : order) sorted.push_back(yields[i]);
      const int choice = policy_.Choose(sorted, streams);
      const int drafting = who == Who::kPolicy ? choice : who == Who::kAll ? streams : 0;
      drafted.assign(right.size(), false);
      for (int i = 0; i < drafting; ++i) {
        drafted[order[static_cast<size_t>(i)]] = true;
        ++outcome.by_stream[order[static_cast<size_t>(i)]];
      }
      chances += streams;
      taken += drafting;
      const double pass = world_.fill_each_ms * streams + (drafting > 0 ? world_.draft_ms + world_.draft_each_ms * drafting : 0);
      policy_.PassTook(streams, drafting, Measured(pass, &ms));
    }
    outcome.rate = tokens / ms;
    outcome.drafted = taken / chances;
    return outcome;
  }

 private:
  double Measured(double ms, double* sum) {
    ms *= scale_;
    *sum += ms;
    const double off = 1 + world_.noise * std::normal_distribution<>()(random_);
    const bool stolen = std::uniform_real_distribution<>()(random_) < world_.stolen;
    return ms * std::max(0.2, off) * (stolen ? 3 : 1);
  }

  World world_;
  std::mt19937 random_;
  DraftPolicy policy_{512, 1};
  double scale_ = 1;
};

double Flat(int) { return 1; }
double PerRow(int rows) { return 0.05 + 0.1 * rows; }

std::string FreeRows() {
  Finding found;
  for (const int streams : {1, 4, 16}) {
    const Outcome seen = Run({Flat}, 1).Steps(std::vector<double>(static_cast<size_t>(streams), 0.85), 2000, Who::kPolicy);
    found.Expect(seen.drafted > 0.95, std::to_string(streams) + " streams draft in " + std::to_string(seen.drafted) + " of their steps");
  }
  return found.what();
}

std::string DearRows() {
  Finding found;
  for (const int streams : {4, 16, 64}) {
    const Outcome seen = Run({PerRow}, 2).Steps(std::vector<double>(static_cast<size_t>(streams), 0.85), 2000, Who::kPolicy);
    found.Expect(seen.drafted < 0.05, std::to_string(streams) + " streams draft in " + std::to_string(seen.drafted) + " of their steps");
  }
  return found.what();
}

// Wherever drafting pays a little, a lot, or costs something, on a machine whose measurements are off.
std::string NeverMuchWorse() {
  Finding found;
  unsigned seed = 10;
  for (const int streams : {1, 2, 8, 16, 32}) {
    for (const double slope : {0.0, 0.3, 0.6, 0.9, 1.2}) {
      for (const double right : {0.2, 0.6, 0.9}) {
        // Twice the rows take 1 + slope times as long.
        World world{.step_ms = [=](int rows) { return 1 + slope * (static_cast<double>(rows) / streams - 1); },
                    .draft_ms = 0.1, .draft_each_ms = 0.1 / streams, .fill_each_ms = 0.02 / streams,
                    .noise = 0.08, .stolen = 0.03, .drift = 0.0003};
        const std::vector<double> all(static_cast<size_t>(streams), right);
        ++seed;
        const double chosen = Run(world, seed).Steps(all, 3000, Who::kPolicy).rate;
        const double best = std::max(Run(world, seed).Steps(all, 3000, Who::kAll).rate, Run(world, seed).Steps(all, 3000, Who::kNobody).rate);
        found.Expect(chosen > 0.97 * best, std::to_string(streams) + " streams, slope " + std::to_string(slope) + ", " + std::to_string(right) +
                                               " right: " + std::to_string(chosen / best) + " of the better of all and nobody");
      }
    }
  }
  return found.what();
}

std::string OnlyWhoIsRight() {
  Finding found;
  std::vector<double> right(8, 0.9);
  right[2] = right[5] = 0.05;
  World world{.step_ms = [](int rows) { return 0.6 + 0.05 * rows; }, .draft_ms = 0.02, .draft_each_ms = 0.01, .noise = 0.03};
  const Outcome seen = Run(world, 3).Steps(right, 4000, Who::kPolicy);
  for (size_t i = 0; i < right.size(); ++i) {
    const double share = seen.by_stream[i] / 4000.0;
    found.Expect(right[i] > 0.5 ? share > 0.85 : share < 0.35, "stream " + std::to_string(i) + " drafts in " + std::to_string(share) + " of its steps");
  }
  return found.what();
}

std::string FollowsTheLoad() {
  Finding found;
  // Up to 4 rows cost the same, then each costs.
  Run run({[](int rows) { return 1 + 0.25 * std::max(0, rows - 4); }}, 4);
  for (int round = 0; round < 3; ++round) {
    const double alone = run.Steps({0.9}, 600, Who::kPolicy).drafted;
    const double many = run.Steps(std::vector<double>(16, 0.6), 600, Who::kPolicy).drafted;
    found.Expect(alone > 0.9, "a lone stream drafts in " + std::to_string(alone) + " of its steps");
    found.Expect(many < 0.12, "of many, streams draft in " + std::to_string(many) + " of their steps");
  }
  return found.what();
}

std::string Repeats() {
  Finding found;
  const World world{.step_ms = PerRow, .noise = 0.1, .stolen = 0.1};
  const Outcome first = Run(world, 9).Steps(std::vector<double>(6, 0.7), 500, Who::kPolicy);
  const Outcome second = Run(world, 9).Steps(std::vector<double>(6, 0.7), 500, Who::kPolicy);
  found.Expect(first.by_stream == second.by_stream, "the same measurements lead to other decisions");
  return found.what();
}

}  // namespace
}  // namespace margay

int main() {
  margay::Claims claims;
  claims.Check("where rows cost nothing, everyone drafts", margay::FreeRows());
  claims.Check("where every row computes, nobody drafts, but for a trial now and then", margay::DearRows());
  claims.Check("what is chosen is never 3 % worse than the better of all and nobody, whatever drafting costs and brings", margay::NeverMuchWorse());
  claims.Check("a stream whose drafts are wrong does not draft, the others do", margay::OnlyWhoIsRight());
  claims.Check("the choice follows the load", margay::FollowsTheLoad());
  claims.Check("decisions depend on what was measured alone", margay::Repeats());
  return claims.ExitCode();
}
