// Times operations by turns with the machine's limits and prints one JSON object per line for test/bench to tabulate.
//
// A round times every member of a case once: the limits, the operation, the limits again, its rivals. The share of the
// limit is taken within each round, so that a machine that slows down for a while slows both sides; medians and spread
// are over the rounds. A round in which other processes took cores from this one, or the limit before and after the
// operation differ, says nothing: it is made again, and a figure with too few sound rounds is marked as disturbed. Everything runs once before it is timed. In each sample the operation is repeated until
// it has lasted some milliseconds; the running number lets it take other weights each time, as a model does.
//
//   Bench bench(argc, argv);                       // --threads 2 --only linear --path avx512 --quick
//   bench.Measure({.table = "linear", .name = "bf16 2048 x 6144, 1 row", .path = path.name, .threads = 2,
//                  .bytes = 2.0 * 2048 * 6144, .operations = 2.0 * 2048 * 6144, .arithmetic = Arithmetic::kFloat,
//                  .promise = ShareOfLimit(0.92, 0.97), .run = [&](int64_t i) { Multiply(copies[i % copies.size()]); }});
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "frame/limits.h"

namespace margay::bench {

// What must be reached: the floor at least, the goal if possible.
struct Promise {
  enum class Of { kShare, kValue } of = Of::kShare;
  bool at_most = false;  // kValue only: smaller is better
  double floor = 0;
  double goal = 0;
};
inline Promise ShareOfLimit(double floor, double goal) { return {Promise::Of::kShare, false, floor, goal}; }
inline Promise ValueAtLeast(double floor, double goal) { return {Promise::Of::kValue, false, floor, goal}; }
inline Promise ValueAtMost(double floor, double goal) { return {Promise::Of::kValue, true, floor, goal}; }

// `run` gets the number of the run.
using Run = std::function<void(int64_t run)>;

// Another way to do the same work, timed in the same rounds.
struct Rival {
  std::string name;
  Run run;
  std::function<void()> clear = {};
};

struct Case {
  std::string table;
  std::string name;         // format and shape
  std::string path;         // code path that runs
  int threads = 1;
  double bytes = 0;         // that one run has to read from memory no cache holds
  double copied_bytes = 0;  // or has to copy
  double operations = 0;    // multiplications and additions of one run
  Arithmetic arithmetic = Arithmetic::kNone;
  // Units of work of one run: what is printed is units per second, or microseconds per unit for "us". Without it, bytes
  // in GB/s, or operations in GFLOP/s where there are no bytes.
  std::string unit = {};
  double units = 0;
  std::optional<Promise> promise = {};
  Run run;
  std::function<void()> clear = {};  // after every run, not timed: what it left behind goes
  std::vector<Rival> rivals = {};
};

// Medians over rounds with least and most.
struct Spread {
  double median = 0;
  double least = 0;
  double most = 0;
};
inline constexpr Spread kNoSpread = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::quiet_NaN(),
                                     std::numeric_limits<double>::quiet_NaN()};
Spread SpreadOf(std::vector<double> samples);

// One line of a table. NaN: does not apply.
struct Figure {
  std::string table;
  std::string name;
  std::string path;
  int threads = 1;
  std::string unit;
  Spread value = kNoSpread;
  double limit = std::numeric_limits<double>::quiet_NaN();  // in the same unit
  std::string limited_by = {};  // "stream", "fp32 avx512", ...
  Spread share = kNoSpread;  // of the limit
  std::optional<Promise> promise = {};
  std::map<std::string, Spread> rivals = {};  // in the same unit
  bool disturbed = false;  // too few sound rounds: it judges nothing
};

// Where another engine is to be had (frame/peer.h).
struct PeerFiles {
  std::string library;
  std::string model;
};

// Seconds for which the calling thread has wanted a core that others had.
double StolenFromThread();
// Of this many seconds, more than a round may lose that is to say something.
bool Disturbs(double stolen_seconds, double seconds);

class Bench {
 public:
  // Ends the program with a usage line when it does not understand its arguments. Prints machine and limits.
  Bench(int argc, char** argv);

  // One thread and all of them, or what --threads says.
  const std::vector<int>& threads() const { return threads_; }
  int all_threads() const { return threads_.back(); }
  ThreadPool* pool(int threads);
  Limits& limits() { return limits_; }
  bool quick() const { return quick_; }
  const std::optional<PeerFiles>& peer() const { return peer_; }
  // Whether --only and --path leave this in. Ask before making expensive inputs.
  bool WantsTable(const std::string& table) const { return only_.empty() || only_ == table; }
  bool Wants(const std::string& table, const std::string& path) const;

  // Times a case, unless it is not wanted, and prints its figure.
  std::optional<Figure> Measure(const Case& c);
  // Prints a figure that was measured otherwise.
  void Print(const Figure& figure) const;

 private:
  struct Round;
  Round TimeRound(const Case& c, const Unit* unit, int64_t repeats, int64_t* run);
  void PrintMachine() const;
  void PrintLimits();

  bool quick_ = false;
  std::optional<PeerFiles> peer_;
  std::string only_;
  std::string path_;
  std::vector<int> threads_;
  std::map<int, std::unique_ptr<ThreadPool>> pools_;
  Limits limits_;
};

}  // namespace margay::bench
