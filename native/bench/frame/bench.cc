#include "frame/bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string_view>
#include <utility>

#include "frame/json_line.h"

namespace margay::bench {
namespace {

constexpr int kRounds = 15;
constexpr int kQuickRounds = 5;
constexpr double kSampleSeconds = 0.02;
constexpr double kQuickSampleSeconds = 0.005;
constexpr int64_t kMostRepeats = 100'000;
constexpr double kCaseSeconds = 12;  // long operations have fewer rounds
constexpr double kQuickCaseSeconds = 4;
constexpr int kLeastRounds = 3;
constexpr int kQuickLeastRounds = 1;
constexpr double kLongSeconds = 0.5;
constexpr double kMostStolen = 0.03;  // of a round's time, by other processes
constexpr double kMostApart = 0.1;    // the limit before and after the operation

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double TimeRuns(const Run& run, const std::function<void()>& clear, int64_t first, int64_t count) {
  const double start = Now();
  double cleared = 0;
  for (int64_t i = first; i < first + count; ++i) {
    run(i);
    if (!clear) continue;
    const double ended = Now();
    clear();
    cleared += Now() - ended;
  }
  return Now() - start - cleared;
}

double StolenSeconds(const std::filesystem::path& schedstat) {
  std::ifstream file(schedstat);
  double ran = 0, waited = 0;
  return file >> ran >> waited ? waited / 1e9 : 0;
}

// Of all threads of this process.
double StolenSeconds() {
  double seconds = 0;
  std::error_code failed;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", failed)) {
    seconds += StolenSeconds(task.path() / "schedstat");
  }
  return seconds;
}

std::string SpreadJson(const Spread& spread) {
  std::string list(1, '[');
  list.append(JsonLine::Spell(spread.median)).append(",").append(JsonLine::Spell(spread.least));
  return list.append(",").append(JsonLine::Spell(spread.most)).append("]");
}

std::string ProcessorName() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "unknown processor";
}

std::string FeatureList() {
  const CpuFeatures f = DetectCpuFeatures();
  const std::pair<const char*, bool> all[] = {{"avx2", f.avx2},
                                              {"avx512", f.avx512},
                                              {"avx512_bf16", f.avx512_bf16},
                                              {"avx512_vnni", f.avx512_vnni},
                                              {"avx512_vbmi", f.avx512_vbmi},
                                              {"amx", f.amx}};
  std::string list;
  for (const auto& [name, present] : all) {
    if (present) list.append(list.empty() ? "" : " ").append(name);
  }
  return list;
}

[[noreturn]] void Usage(const char* program) {
  std::fprintf(stderr, "usage: %s [--threads N] [--only TABLE] [--path CODE-PATH] [--quick] [--peer LIBRARY MODEL]\n", program);
  std::exit(2);
}

}  // namespace

double StolenFromThread() { return StolenSeconds("/proc/thread-self/schedstat"); }

bool Disturbs(double stolen_seconds, double seconds) { return stolen_seconds > kMostStolen * seconds; }

Spread SpreadOf(std::vector<double> samples) {
  if (samples.empty()) return kNoSpread;
  std::sort(samples.begin(), samples.end());
  const size_t middle = samples.size() / 2;
  const double median = samples.size() % 2 == 1 ? samples[middle] : (samples[middle - 1] + samples[middle]) / 2;
  return {median, samples.front(), samples.back()};
}

// Seconds of one run of each member, and of the limit.
struct Bench::Round {
  double own = 0;
  std::vector<double> rivals;
  double limit = 0;
  std::string limited_by;
  bool disturbed = false;
};

Bench::Bench(int argc, char** argv) {
  int threads = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string_view option = argv[i];
    const auto value = [&]() -> const char* { return i + 1 < argc ? argv[++i] : (Usage(argv[0]), ""); };
    if (option == "--quick") quick_ = true;
    else if (option == "--threads") threads = std::atoi(value());
    else if (option == "--only") only_ = value();
    else if (option == "--path") path_ = value();
    else if (option == "--peer") {
      const std::string library = value();
      peer_ = {library, value()};
    } else Usage(argv[0]);
  }
  if (threads < 0 || threads > 1024) Usage(argv[0]);
  const int cores = ThreadPool::UsableCores();
  threads_ = threads > 0 ? std::vector<int>{threads} : cores > 1 ? std::vector<int>{1, cores} : std::vector<int>{1};
  PrintMachine();
  PrintLimits();
}

ThreadPool* Bench::pool(int threads) {
  std::unique_ptr<ThreadPool>& pool = pools_[threads];
  if (pool == nullptr) pool = std::make_unique<ThreadPool>(threads);
  return pool.get();
}

bool Bench::Wants(const std::string& table, const std::string& path) const {
  return WantsTable(table) && (path_.empty() || path_ == path);
}

Bench::Round Bench::TimeRound(const Case& c, const Unit* unit, int64_t repeats, int64_t* run) {
  ThreadPool* threads = pool(c.threads);
  Round round;
  const auto timed = [&](const Run& body, const std::function<void()>& clear) {
    const double seconds = TimeRuns(body, clear, *run, repeats) / static_cast<double>(repeats);
    *run += repeats;
    return seconds;
  };
  const auto limits = [&] {
    std::map<std::string, double> seconds;
    if (c.bytes > 0) seconds["stream"] = c.bytes / Limits::StreamBytes() * limits_.StreamSeconds(threads);
    if (c.copied_bytes > 0) seconds["memcpy"] = c.copied_bytes / Limits::CopyBytes() * limits_.CopySeconds(threads);
    if (unit != nullptr) seconds[unit->name] = c.operations / unit->SampleOperations() * limits_.ArithmeticSeconds(*unit, threads);
    return seconds;
  };
  const double start = Now();
  const double stolen = StolenSeconds();
  const std::map<std::string, double> before = limits();
  round.own = timed(c.run, c.clear);
  for (const auto& [name, after] : limits()) {
    const double best = std::min(before.at(name), after);
    if (best <= round.limit) continue;
    round.limit = best;
    round.limited_by = name;
    round.disturbed = std::abs(after - before.at(name)) > kMostApart * best;
  }
  for (const Rival& rival : c.rivals) round.rivals.push_back(timed(rival.run, rival.clear));
  round.disturbed |= Disturbs(StolenSeconds() - stolen, Now() - start);
  return round;
}

std::optional<Figure> Bench::Measure(const Case& c) {
  if (!Wants(c.table, c.path)) return std::nullopt;
  const Unit* unit = c.operations > 0 ? limits_.BestFor(c.path, c.arithmetic) : nullptr;
  int64_t run = 0;
  double once = TimeRuns(c.run, c.clear, run++, 1);
  for (const Rival& rival : c.rivals) TimeRuns(rival.run, rival.clear, run++, 1);
  // The first run of something short pays for what the others find ready.
  if (once < kLongSeconds) once = std::max(1e-7, TimeRuns(c.run, c.clear, run++, 1));
  const double wanted = (quick_ ? kQuickSampleSeconds : kSampleSeconds) / once;
  const auto repeats = std::clamp(static_cast<int64_t>(wanted), int64_t{1}, kMostRepeats);
  const double start = Now();
  if (once < kLongSeconds) TimeRound(c, unit, repeats, &run);
  const double round_seconds = once < kLongSeconds ? Now() - start : once * static_cast<double>(1 + c.rivals.size());
  const auto affordable = static_cast<int>((quick_ ? kQuickCaseSeconds : kCaseSeconds) / round_seconds);
  const int rounds = std::max(quick_ ? kQuickLeastRounds : kLeastRounds, std::min(affordable, quick_ ? kQuickRounds : kRounds));

  Figure figure{.table = c.table, .name = c.name, .path = c.path, .threads = c.threads, .unit = c.unit, .promise = c.promise};
  double units = c.units;
  const bool microseconds = c.unit == "us";
  if (figure.unit.empty()) {
    figure.unit = c.bytes + c.copied_bytes > 0 ? "GB/s" : "GFLOP/s";
    units = (c.bytes + c.copied_bytes > 0 ? c.bytes + c.copied_bytes : c.operations) / 1e9;
  }
  const auto value = [&](double seconds) { return microseconds ? seconds * 1e6 / units : units / seconds; };
  std::vector<Round> seen;
  const auto sound = [&] { return static_cast<int>(std::count_if(seen.begin(), seen.end(), [](const Round& round) { return !round.disturbed; })); };
  for (int i = 0; i < rounds || (sound() < rounds && i < 2 * rounds); ++i) seen.push_back(TimeRound(c, unit, repeats, &run));
  figure.disturbed = 2 * sound() < rounds;
  if (!figure.disturbed) std::erase_if(seen, [](const Round& round) { return round.disturbed; });
  std::vector<double> own;
  std::vector<double> limit;
  std::vector<double> share;
  std::vector<std::vector<double>> rivals(c.rivals.size());
  for (const Round& round : seen) {
    own.push_back(value(round.own));
    for (size_t j = 0; j < rivals.size(); ++j) rivals[j].push_back(value(round.rivals[j]));
    if (round.limit == 0) continue;
    limit.push_back(value(round.limit));
    share.push_back(round.limit / round.own);
    figure.limited_by = round.limited_by;
  }
  figure.value = SpreadOf(own);
  figure.limit = SpreadOf(limit).median;
  figure.share = SpreadOf(share);
  for (size_t j = 0; j < rivals.size(); ++j) figure.rivals[c.rivals[j].name] = SpreadOf(rivals[j]);
  Print(figure);
  return figure;
}

void Bench::Print(const Figure& figure) const {
  JsonLine line("figure");
  line.Text("table", figure.table).Text("name", figure.name).Text("path", figure.path);
  line.Number("threads", figure.threads).Text("unit", figure.unit).Raw("value", SpreadJson(figure.value));
  line.Number("limit", figure.limit).Text("limitedBy", figure.limited_by).Raw("share", SpreadJson(figure.share)).Flag("disturbed", figure.disturbed);
  if (figure.promise.has_value()) {
    const Promise& promise = *figure.promise;
    JsonLine promised("promise");
    promised.Text("of", promise.of == Promise::Of::kShare ? "share" : "value").Flag("atMost", promise.at_most);
    promised.Number("floor", promise.floor).Number("goal", promise.goal);
    line.Raw("promise", promised.Object());
  }
  std::string rivals(1, '{');
  for (const auto& [name, spread] : figure.rivals) {
    rivals.append(rivals.size() > 1 ? "," : "").append(JsonLine::Quote(name)).append(":").append(SpreadJson(spread));
  }
  line.Raw("rivals", rivals.append("}")).Print();
}

void Bench::PrintMachine() const {
  JsonLine line("machine");
  double load[3] = {0, 0, 0};
  if (getloadavg(load, 3) < 0) load[0] = kNoSpread.median;
  line.Text("processor", ProcessorName()).Text("features", FeatureList()).Number("cores", ThreadPool::UsableCores());
  line.Number("load", load[0]).Print();
}

void Bench::PrintLimits() {
  const int rounds = quick_ ? 3 : 7;
  const auto print = [&](const std::string& name, const char* unit, int threads, double work, const std::function<double()>& seconds) {
    seconds();
    std::vector<double> rates;
    for (int i = 0; i < rounds; ++i) rates.push_back(work / seconds() / 1e9);
    JsonLine line("limit");
    line.Text("name", name).Number("threads", threads).Text("unit", unit).Raw("value", SpreadJson(SpreadOf(rates))).Print();
  };
  for (const int threads : threads_) {
    ThreadPool* all = pool(threads);
    print("stream", "GB/s", threads, Limits::StreamBytes(), [&] { return limits_.StreamSeconds(all); });
    print("memcpy", "GB/s", threads, Limits::CopyBytes(), [&] { return limits_.CopySeconds(all); });
    for (const Unit& unit : limits_.units()) {
      const char* name = unit.kind == Arithmetic::kInt8 ? "GOP/s" : "GFLOP/s";
      print(unit.name, name, threads, unit.SampleOperations(), [&] { return limits_.ArithmeticSeconds(unit, all); });
    }
  }
}

}  // namespace margay::bench
