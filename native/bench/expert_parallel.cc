// expert_parallel: two ranks of one core each, which share the experts of the layer slice, against one rank of two cores; and
// what single-batch overlap hides of an exchange over a modelled link. The ranks are threads of this process over one
// packed file. The last line is the trace of a step over that link.
#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/exchange.h"
#include "core/trace.h"
#include "frame.h"
#include "frame/json_line.h"
#include "frame/synthetic.h"
#include "model/model.h"

namespace margay::bench {
namespace {

constexpr int kRanks = 2;
constexpr int kPrompt = 512;
constexpr int kBatch = 32;
constexpr int kDecodeAt = 100;  // rows of context before a decoded token
constexpr int kBlocksEach = kDecodeAt / kBlockTokens + 1;
constexpr double kOfDensePath = 0.6;  // what the exchange takes on the modelled link

template <typename T>
T OrDie(Result<T> result) {
  if (result.ok()) return std::move(result.value());
  std::fprintf(stderr, "%s\n", result.status().message().c_str());
  std::exit(1);
}

void OrDie(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

// A folder of packed weights that is gone as soon as all ranks have mapped them.
class PackedFolder {
 public:
  PackedFolder() {
    char name[] = "/dev/shm/margay-bench-XXXXXX";
    if (mkdtemp(name) == nullptr) OrDie(Status(Code::kIo, "no folder in /dev/shm"));
    name_ = name;
  }
  ~PackedFolder() {
    if (DIR* folder = opendir(name_.c_str())) {
      while (const dirent* entry = readdir(folder)) unlink((name_ + "/" + entry->d_name).c_str());
      closedir(folder);
    }
    rmdir(name_.c_str());
  }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

// A model with pages for what is timed, and fresh tokens in every step.
class Rank {
 public:
  Rank(const std::string& checkpoint, const std::string& packed, int vocabulary, int threads, uint64_t seed)
      : vocabulary_(vocabulary), random_(seed) {
    ModelOptions options;
    options.folder = checkpoint;
    options.packed_folder = packed;
    options.threads = threads;
    model_ = OrDie(Model::Load(options));
    const KvLayout& layout = model_->facts().kv;
    const int blocks = kBatch * kBlocksEach;
    pages_ = Buffer(layout.block_bytes() * static_cast<size_t>(blocks));
    kv_ = {pages_.data(), layout, blocks};
    for (int32_t block = 0; block < blocks; ++block) table_.push_back(block);
    tokens_.resize(kPrompt);
    logits_.resize(size_t{kBatch} * static_cast<size_t>(vocabulary));
    Run(1, kDecodeAt, 0);
    for (int attention = 0; attention < layout.attentions; ++attention) {
      for (int block = kBlocksEach; block < blocks; ++block) {
        std::memcpy(kv_.page(attention, block), kv_.page(attention, block % kBlocksEach), layout.page_bytes());
      }
    }
  }

  Model* model() { return model_.get(); }

  // `count` rows of each sequence behind `position` others, and the logits of the last.
  void Run(int sequences, int count, int position) {
    rows_.clear();
    for (int i = 0; i < sequences * count; ++i) {
      random_ = random_ * 6364136223846793005U + 1442695040888963407U;
      tokens_[static_cast<size_t>(i)] = static_cast<int32_t>((random_ >> 33) % static_cast<uint64_t>(vocabulary_));
    }
    for (int i = 0; i < sequences; ++i) {
      rows_.push_back({&tokens_[static_cast<size_t>(i * count)], count, position, &table_[static_cast<size_t>(i * kBlocksEach)], 1});
    }
    OrDie(model_->Forward(rows_, kv_, nullptr, logits_.data()));
  }

 private:
  const int vocabulary_;
  std::unique_ptr<Model> model_;
  Buffer pages_;
  KvMemory kv_;
  std::vector<int32_t> table_;
  std::vector<int32_t> tokens_;
  std::vector<SequenceRows> rows_;
  std::vector<float> logits_;
  uint64_t random_;
};

// What a step computes, all ranks together.
struct Work {
  std::string name;
  int sequences = 1;  // of all ranks; a prompt is cut in as many pieces as there are ranks
  int count = 1;
  int position = kDecodeAt;
};

using Exchanges = std::vector<std::unique_ptr<ExpertExchange>>;

// The receives right behind the sends: nothing runs meanwhile.
const std::vector<Stage> kWithoutOverlap = {Stage::kProject0, Stage::kAttend0, Stage::kRoute, Stage::kDispatchSend,
                                            Stage::kDispatchReceive, Stage::kExperts, Stage::kCombineSend, Stage::kCombineReceive,
                                            Stage::kMlp0, Stage::kProject1, Stage::kAttend1, Stage::kMlp1, Stage::kJoin};

class Group {
 public:
  Group(ThreadPool* threads, const std::string& checkpoint, const std::string& packed, int vocabulary) : threads_(threads) {
    for (int rank = 0; rank < kRanks; ++rank) {
      ranks_.push_back(std::make_unique<Rank>(checkpoint, packed, vocabulary, 1, static_cast<uint64_t>(rank) + 1));
    }
    plain_ = Join(0);
  }

  Exchanges Join(double bytes_per_s) const {
    const ModelFacts& facts = ranks_[0]->model()->facts();
    GroupSpec spec;
    spec.epoch = 1;
    for (int expert = 0; expert < facts.experts; ++expert) spec.owners.push_back({expert * kRanks / facts.experts});
    spec.hidden = facts.hidden;
    spec.topk = facts.topk;
    spec.max_rows = facts.max_rows;
    spec.payload = facts.payload;
    spec.combine = facts.combine;
    spec.deadline_ms = 60'000;
    spec.link_bytes_per_s = bytes_per_s;
    return OrDie(JoinInProcess(spec, kRanks));
  }
  const Exchanges& plain() const { return plain_; }

  void Step(const Work& work, const Exchanges& exchanges, bool overlap) {
    for (int rank = 0; rank < kRanks; ++rank) {
      OrDie(ranks_[static_cast<size_t>(rank)]->model()->SetExchange(exchanges[static_cast<size_t>(rank)].get()));
      ranks_[static_cast<size_t>(rank)]->model()->ForceOrder(overlap ? nullptr : &kWithoutOverlap);
    }
    const bool prompt = work.sequences == 1;
    threads_->Run(kRanks, [&](int rank, int) {
      ranks_[static_cast<size_t>(rank)]->Run(prompt ? 1 : work.sequences / kRanks, prompt ? work.count / kRanks : work.count, work.position);
    });
  }

 private:
  ThreadPool* const threads_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  Exchanges plain_;
};


// Spans of one step by thread, in order.
std::map<int, std::vector<trace::Event>> Trace(const std::function<void()>& step) {
  trace::Start();
  step();
  std::map<int, std::vector<trace::Event>> by_thread;
  for (const trace::Event& event : trace::Take()) by_thread[event.thread].push_back(event);
  for (auto& [thread, events] : by_thread) {
    std::sort(events.begin(), events.end(), [](const auto& a, const auto& b) { return a.start_ms < b.start_ms; });
  }
  return by_thread;
}

double DensePathOnceMs(const std::function<void()>& step) {
  double sum = 0;
  for (const auto& [thread, events] : Trace(step)) {
    std::map<std::string, int> seen;
    for (const trace::Event& event : events) {
      const std::string name = event.name;
      const bool second = seen[name]++ % 2 == 1;
      if (name == "dense mlp" || (second && (name == "project" || name == "attend"))) sum += event.ms;
    }
  }
  return sum / kRanks;
}

// Dense MLPs, and all of the second attention, per rank; of the middle one of several steps.
double DensePathMs(const std::function<void()>& step) {
  constexpr int kSteps = 7;
  std::vector<double> sums;
  for (int i = 0; i < kSteps; ++i) sums.push_back(DensePathOnceMs(step));
  return SpreadOf(sums).median;
}

double BytesOfStep(Group* group, const Work& work) {
  const auto sent = [&] {
    const ExchangeCounters counters = group->plain()[0]->counters();
    return static_cast<double>(counters.dispatch_bytes + counters.combine_bytes);
  };
  constexpr int kSteps = 4;
  const double before = sent();
  for (int i = 0; i < kSteps; ++i) group->Step(work, group->plain(), true);
  return (sent() - before) / kSteps;
}

// Choices that the busier rank computes in a step, on average: experts are not chosen evenly, and the other rank waits.
double ChoicesOfBusier(Group* group, const Work& work, int topk) {
  const auto sent = [&](size_t rank) { return static_cast<double>(group->plain()[rank]->counters().choices_sent); };
  constexpr int kSteps = 8;
  double busier = 0;
  for (int i = 0; i < kSteps; ++i) {
    const double before = sent(0) - sent(1);
    group->Step(work, group->plain(), true);
    busier += work.sequences * work.count * topk / 2.0 + std::abs(sent(0) - sent(1) - before);
  }
  return busier / kSteps;
}

// Steps over one link, and what a rank waited in each of them, on average over the ranks.
class WatchedSteps {
 public:
  WatchedSteps(Group* group, const Work& work, Exchanges exchanges, bool overlap)
      : group_(group), work_(work), exchanges_(std::move(exchanges)), overlap_(overlap) {}

  void Step() {
    const double before = WaitedMs();
    group_->Step(work_, exchanges_, overlap_);
    waited_ms_.push_back(WaitedMs() - before);
  }
  // Of the middle step: one in which a rank lost its core makes the other wait as long.
  double MedianWaitMs() const { return SpreadOf(waited_ms_).median; }

 private:
  double WaitedMs() const {
    double waited_ns = 0;
    for (const auto& exchange : exchanges_) {
      const ExchangeCounters counters = exchange->counters();
      waited_ns += static_cast<double>(counters.dispatch_wait_ns + counters.combine_wait_ns);
    }
    return waited_ns / 1e6 / static_cast<double>(exchanges_.size());
  }

  Group* const group_;
  const Work work_;
  const Exchanges exchanges_;
  const bool overlap_;
  std::vector<double> waited_ms_;
};

void PrintTrace(const std::function<void()>& step) {
  std::string spans;
  const auto add = [&](int rank, const std::string& thread, const std::string& name, double start_ms, double ms) {
    char numbers[80];
    std::snprintf(numbers, sizeof(numbers), "%.4f,\"ms\":%.4f", start_ms, ms);
    spans.append(spans.empty() ? "" : ",").append("{\"rank\":" + std::to_string(rank) + ",\"thread\":\"" + thread + "\",\"name\":" +
                                                  JsonLine::Quote(name) + ",\"startMs\":" + numbers + "}");
  };
  int rank = 0;
  double start_ms = 0;
  for (const auto& [thread, events] : Trace(step)) {
    for (const trace::Event& event : events) {
      const std::string name = event.name;
      if (start_ms == 0) start_ms = event.start_ms;
      const bool link = name.ends_with(" on the link");
      add(rank, link ? "link" : "engine", link ? name.substr(0, name.find(' ')) : name, event.start_ms - start_ms, event.ms);
    }
    ++rank;
  }
  JsonLine("trace").Raw("spans", "[" + spans + "]").Print();
}

// The same step with and without the link, with and without overlap, by turns.
void Overlap(Bench* bench, Group* group, const Work& work, bool traced) {
  const std::string table = "single-batch overlap";
  if (!bench->WantsTable(table)) return;
  WatchedSteps unlinked(group, work, group->Join(0), true);
  const auto plain = [&] { unlinked.Step(); };
  plain();
  const double dense_ms = DensePathMs(plain);
  const double bytes = BytesOfStep(group, work);
  const double link_ms = kOfDensePath * dense_ms;
  const double bytes_per_s = bytes / (link_ms / 1000);
  WatchedSteps linked(group, work, group->Join(bytes_per_s), true);
  WatchedSteps serial_linked(group, work, group->Join(bytes_per_s), false);
  const std::string path = CpuIsas().back();
  const auto run = [](WatchedSteps* steps) { return [steps](int64_t) { steps->Step(); }; };
  const std::optional<Figure> figure =
      bench->Measure({.table = table, .name = work.name + ", link as long as 60 % of the dense path", .path = path, .threads = kRanks,
                      .unit = "us", .units = 1, .run = run(&linked),
                      .rivals = {{"no link", run(&unlinked)}, {"link, no overlap", run(&serial_linked)}}});
  if (!figure.has_value()) return;
  const double with = figure->value.median / 1000;
  const double without = figure->rivals.at("no link").median / 1000;
  const double serial = figure->rivals.at("link, no overlap").median / 1000;
  const auto print = [&](const std::string& name, double value, std::optional<Promise> promise, const std::string& unit) {
    bench->Print({.table = table, .name = work.name + ", " + name, .path = path, .threads = kRanks, .unit = unit, .value = SpreadOf({value}),
                  .promise = promise});
  };
  print("dense path", dense_ms, std::nullopt, "ms");
  print("exchange on the link", link_ms, std::nullopt, "ms");
  print("step against one without a link", with / without, ValueAtMost(1.1, 1.04), "x");
  print("the same without overlap", serial / without, std::nullopt, "x");
  // What a rank waited in a step of its group, beyond what it waits for a peer that computes longer.
  const auto hidden = [&](const WatchedSteps& steps) { return 1 - (steps.MedianWaitMs() - unlinked.MedianWaitMs()) / link_ms; };
  print("hidden of the exchange", hidden(linked), ValueAtLeast(0.9, 0.97), "x");
  print("the same without overlap, hidden", hidden(serial_linked), std::nullopt, "x");
  if (traced) PrintTrace([&] { linked.Step(); });
}

void Layouts(Bench* bench, Group* group, Rank* one, const ModelShape& s) {
  const std::string table = "two ranks of one core, one rank of two";
  if (!bench->WantsTable(table)) return;
  const std::string path = CpuIsas().back();
  const Work prompt{"prefill, 512 tokens", 1, kPrompt, 0};
  const std::optional<Figure> prefill =
      bench->Measure({.table = table, .name = prompt.name, .path = path, .threads = kRanks, .unit = "tok/s", .units = kPrompt,
                      .run = [&](int64_t) { group->Step(prompt, group->plain(), true); },
                      .rivals = {{"one rank of two cores", [&](int64_t) { one->Run(1, kPrompt, 0); }}}});
  if (prefill.has_value()) {
    bench->Print({.table = table, .name = prompt.name + ", two ranks against one", .path = path, .threads = kRanks, .unit = "x",
                  .value = SpreadOf({prefill->value.median / prefill->rivals.begin()->second.median}), .promise = ValueAtLeast(0.9, 1)});
  }
  // Each rank reads the dense weights; every expert is read by one. Cores compute a layer as long as the busier rank does.
  const double dense = (s.AttentionParameters() + s.DenseParameters() + s.HeadParameters()) * 2;
  const double context = kBatch * s.layers * 2.0 * kDecodeAt * (s.kv_lora + s.rope) * 2;
  const Work decode{"decode, batch 32", kBatch, 1, kDecodeAt};
  const double choices = kRanks * ChoicesOfBusier(group, decode, s.topk);
  const double matrices = kBatch * (s.AttentionParameters() + s.DenseParameters() + s.HeadParameters()) + choices * s.ExpertParameters();
  bench->Measure({.table = table, .name = decode.name, .path = path, .threads = kRanks,
                  .bytes = kRanks * dense + s.layers * s.experts * s.ExpertParameters() * 2 + context,
                  .operations = 2 * matrices, .arithmetic = Arithmetic::kFloat, .unit = "tok/s", .units = kBatch,
                  .promise = ShareOfLimit(0.9, 0.95), .run = [&](int64_t) { group->Step(decode, group->plain(), true); },
                  .rivals = {{"one rank of two cores", [&](int64_t) { one->Run(kBatch, 1, kDecodeAt); }}}});
}

void Main(Bench* bench) {
  const ModelShape shape = LayerSlice();
  ThreadPool* threads = bench->pool(kRanks);
  std::unique_ptr<Rank> one;
  std::unique_ptr<Group> group;
  {
    const SyntheticCheckpoint checkpoint(shape, DType::kBf16, threads);
    const PackedFolder packed;
    one = std::make_unique<Rank>(checkpoint.folder(), packed.name(), shape.vocabulary, kRanks, 7);
    group = std::make_unique<Group>(threads, checkpoint.folder(), packed.name(), shape.vocabulary);
  }
  Layouts(bench, group.get(), one.get(), shape);
  Overlap(bench, group.get(), {"decode, batch 32", kBatch, 1, kDecodeAt}, true);
  Overlap(bench, group.get(), {"decode, batch 2", 2, 1, kDecodeAt}, false);
  if (!bench->quick()) Overlap(bench, group.get(), {"prefill, 512 tokens", 1, kPrompt, 0}, false);
}

}  // namespace
}  // namespace margay::bench

int main(int argc, char** argv) {
  margay::bench::Bench bench(argc, argv);
  margay::bench::Main(&bench);
  return 0;
}
