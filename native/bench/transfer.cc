// transfer: KV pages of full size (72 KiB, 56 attentions) from one pool to another of the same process, by shared memory
// and by TCP on this host, in the same rounds as their limits: memcpy of the same pages by one thread, and a blocking
// socket between two threads that sends and receives the same pages in place, sixteen at a time. Both sides of a transfer are one thread
// each, each on a core of its own. Then how much of a transfer a prefill hides: an engine computes a prompt on the layer
// slice and exports it over a modelled link on which its pages take half as long. Not measured: other hosts.
#include <fcntl.h>
#include <sched.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../tests/kv_sides.h"
#include "core/socket.h"
#include "engine/engine.h"
#include "frame.h"
#include "frame/link_relay.h"
#include "frame/synthetic.h"

namespace margay::bench {
namespace {

constexpr KvLayout kFull{56, 576, KvType::kBf16};
constexpr int kPrefillCore = 0, kDecodeCore = 1;

double Seconds(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Two connected blocking sockets.
struct RawSockets {
  RawSockets() {
    const Fd listener = Must(Listen(*TcpAddress("127.0.0.1", 0)));
    from = Must(StartConnect(*TcpAddress("127.0.0.1", PortOf(listener))));
    while (!(to = Accept(listener))) std::this_thread::yield();
    for (const Fd* fd : {&from, &to}) fcntl(fd->get(), F_SETFL, fcntl(fd->get(), F_GETFL) & ~O_NONBLOCK);
  }
  Fd from, to;
};

// Threads that begin within it run on one core: which of the others a scheduler would give them decides more about the
// rate of a socket than anything that is measured.
class OnCore {
 public:
  explicit OnCore(int nth) {
    sched_getaffinity(0, sizeof before_, &before_);
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int cpu = 0, left = nth % CPU_COUNT(&before_); cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &before_) && left-- == 0) CPU_SET(cpu, &one);
    }
    sched_setaffinity(0, sizeof one, &one);
  }
  ~OnCore() { sched_setaffinity(0, sizeof before_, &before_); }
  OnCore(const OnCore&) = delete;
  OnCore& operator=(const OnCore&) = delete;

 private:
  cpu_set_t before_;
};

template <typename T, typename... Arguments>
std::unique_ptr<T> MadeOn(int core, Arguments... arguments) {
  const OnCore here(core);
  return std::make_unique<T>(arguments...);
}

class Sides {
 public:
  // P's thread runs on one core, D's on another; what they are measured against likewise.
  explicit Sides(int tokens)
      : tokens_(tokens),
        decoder_(MadeOn<Decoder>(kDecodeCore, true, Blocks(), kFull)),
        prefiller_(MadeOn<Prefiller>(kPrefillCore, Blocks(), kFull)) {
    const KvMemory from = prefiller_->pool->memory(), to = decoder_->pool->memory();
    FillNormal({reinterpret_cast<float*>(from.base), bytes() / sizeof(float)}, 1, 1);
    std::memset(to.base, 1, bytes());
  }
  size_t bytes() const { return kFull.block_bytes() * static_cast<size_t>(Blocks()); }

  void Copy() {
    const OnCore here(kDecodeCore);
    for (size_t at = 0; at < bytes(); at += kFull.page_bytes()) std::memcpy(To(at), From(at), kFull.page_bytes());
  }

  void Raw() {
    const auto each = [&](const std::function<ssize_t(size_t, size_t)>& move) {
      for (size_t at = 0; at < bytes();) {
        const ssize_t moved = move(at, 16 * kFull.page_bytes() - at % (16 * kFull.page_bytes()));
        if (moved <= 0) std::abort();
        at += static_cast<size_t>(moved);
      }
    };
    const OnCore here(kDecodeCore);
    std::thread sender([&] {
      const OnCore there(kPrefillCore);
      each([&](size_t at, size_t some) { return send(raw_.from.get(), From(at), some, 0); });
    });
    each([&](size_t at, size_t some) { return recv(raw_.to.get(), To(at), some, MSG_WAITALL); });
    sender.join();
  }

  void Transfer(bool shared_memory) {
    const SequenceRef sequence{0, turn_};
    const auto tokens = TokensFrom(turn_++ * tokens_, tokens_);
    const SequenceKvId received = decoder_->Expect(sequence, tokens), sent = prefiller_->Open(tokens);
    Must(prefiller_->sender->Begin(sequence, sent, tokens_, decoder_->Target(sequence, shared_memory)));
    for (int attention = 0; attention < kFull.attentions; ++attention) {
      prefiller_->sender->Written(sequence, attention, tokens_);
    }
    const bool whole = prefiller_->outcomes.Of(sequence).ok && decoder_->outcomes.Of(sequence).ok;
    if (!whole) std::abort();
    decoder_->Drop(sequence, received);
    prefiller_->pool->Close(sent, false);
  }

 private:
  int Blocks() const { return tokens_ / kBlockTokens; }
  std::byte* From(size_t at) const { return prefiller_->pool->memory().base + at; }
  std::byte* To(size_t at) const { return decoder_->pool->memory().base + at; }

  const int tokens_;
  int turn_ = 0;
  const std::unique_ptr<Decoder> decoder_;
  const std::unique_ptr<Prefiller> prefiller_;
  RawSockets raw_;
};

void MeasureSize(const Bench& bench, int tokens) {
  Sides sides(tokens);
  struct Way {
    std::string name, limited_by;
    std::function<void()> run, limit;
    Promise promise;
    std::vector<double> rates = {}, limits = {}, shares = {};
  };
  std::vector<Way> ways = {
      {"shared memory", "memcpy", [&] { sides.Transfer(true); }, [&] { sides.Copy(); }, ShareOfLimit(0.80, 0.95)},
      {"TCP on this host", "blocking socket", [&] { sides.Transfer(false); }, [&] { sides.Raw(); }, ShareOfLimit(0.80, 1.0)},
  };
  const double gigabytes = static_cast<double>(sides.bytes()) / 1e9;
  // The first rounds connect, map and let the kernel's windows grow.
  const int warm = 3, rounds = bench.quick() ? 5 : 25;
  for (int round = -warm; round < rounds; ++round) {
    for (Way& way : ways) {
      const double limit = Seconds(way.limit), seconds = Seconds(way.run);
      if (round < 0) continue;
      way.rates.push_back(gigabytes / seconds);
      way.limits.push_back(gigabytes / limit);
      way.shares.push_back(limit / seconds);
    }
  }
  for (Way& way : ways) {
    Figure figure;
    figure.table = "transfer";
    figure.name = way.name + ", " + std::to_string(tokens) + " tokens";
    figure.threads = 2;
    figure.unit = "GB/s";
    figure.value = SpreadOf(way.rates);
    figure.limit = SpreadOf(way.limits).median;
    figure.limited_by = way.limited_by;
    figure.share = SpreadOf(way.shares);
    figure.promise = way.promise;
    bench.Print(figure);
  }
}

// A prefill engine over the layer slice, and a decode side for what it exports.
class Hiding {
 public:
  static constexpr int kStepTokens = 256;  // of chunked prefill, as workers have it
  static constexpr int64_t kLongestMs = 600'000;  // for a prompt and its transfer; then the program ends

  Hiding(Bench* bench, int tokens) : tokens_(tokens) {
    const SyntheticCheckpoint checkpoint(LayerSlice(), DType::kBf16, bench->pool(bench->all_threads()));
    EngineOptions options;
    options.model.folder = checkpoint.folder();
    options.model.threads = bench->all_threads();
    options.model.max_rows = kStepTokens;
    options.slots = 1;
    options.kv_blocks = Blocks();
    engine_ = Must(Engine::Open(options, [this] {
      std::lock_guard lock(mutex_);
      news_ = true;
      told_.notify_one();
    }));
    const KvLayout& layout = engine_->facts().kv;
    bytes_ = layout.row_bytes() * static_cast<size_t>(layout.attentions) * static_cast<size_t>(tokens);
    pool_ = Must(KvPool::Create(layout, Blocks(), engine_->facts().model_hash));
    receiver_ = Must(KvReceiver::Create(pool_.get(), engine_->facts().model_hash, "127.0.0.1", 0, false,
                                        [this](const TransferOutcome& outcome) { Sealed(outcome); }));
    receiver_->SetEpoch(kTestEpoch);
  }

  const std::string& path() const { return engine_->facts().isa; }
  size_t bytes() const { return bytes_; }

  // What the steps of a prompt take, in milliseconds, by its first ones: a long prompt is not computed for that.
  double PrefillMs() {
    const int rows = std::min(tokens_, 2 * kStepTokens);
    const OpenedSequence opened = Open();
    const double start_ms = EpochMs();
    const double ms = Steps(opened.ref, rows) - start_ms;
    Must(engine_->CloseSequence(opened.ref, false));
    return ms * tokens_ / rows;
  }

  struct Times {
    double prefill_ms = 0;
    double late_ms = 0;  // from the end of the last step until every page is sealed
  };
  Times PrefillAndSend(const LinkRate& rate) {
    const LinkRelay relay(receiver_->port(), rate);
    const OpenedSequence opened = Open();
    const SequenceRef there{0, turn_};
    const auto tokens = TokensFrom(0, tokens_);
    const OpenedKv kv = Must(pool_->Open(tokens, tokens_, KvUse::kReceive));
    const int64_t deadline_ms = NowMs() + kLongestMs;
    Must(receiver_->Expect(there, kv.id, 0, tokens_, deadline_ms));
    Must(engine_->ExportTo(opened.ref, {"127.0.0.1", relay.port(), "another host", kTestEpoch, there, 0, deadline_ms}));
    const double start_ms = EpochMs();
    const double end_ms = Steps(opened.ref, tokens_);
    std::unique_lock lock(mutex_);
    told_.wait(lock, [this] { return sealed_ms_ > 0; });
    const Times times{end_ms - start_ms, std::max(0.0, std::exchange(sealed_ms_, 0) - end_ms)};
    lock.unlock();
    receiver_->Forget(there);
    pool_->Close(kv.id, false);
    // The acknowledgements of the last pages may still be on their way back.
    Must(engine_->CloseSequence(opened.ref, false));
    while (Must(engine_->Stats()).blocks_available < Blocks()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return times;
  }

 private:
  int Blocks() const { return tokens_ / kBlockTokens + 1; }

  OpenedSequence Open() {
    SequenceSpec spec;
    spec.tokens.resize(static_cast<size_t>(tokens_));
    for (size_t i = 0; i < spec.tokens.size(); ++i) spec.tokens[i] = static_cast<int32_t>((i * 7 + static_cast<size_t>(turn_)) % 384);
    ++turn_;
    spec.prompt_length = tokens_;
    spec.max_new_tokens = 1;
    return Must(engine_->OpenSequence(std::move(spec)));
  }

  // Plans step after step, one ahead of the running one. When the last of them ended, in epoch milliseconds.
  double Steps(SequenceRef ref, int tokens) {
    int planned = 0, reported = 0;
    double end_ms = 0;
    for (int queued = 0; reported < tokens;) {
      for (; queued < 2 && planned < tokens; ++queued) {
        const int rows = std::min(kStepTokens, tokens - planned);
        Must(engine_->Submit(std::array<int32_t, kPlanEntryWidth>{ref.slot, ref.generation, rows, 0}));
        planned += rows;
      }
      std::unique_lock lock(mutex_);
      told_.wait(lock, [this] { return news_; });
      news_ = false;
      lock.unlock();
      for (const EngineMessage& message : engine_->TakeMessages()) {
        const auto* report = std::get_if<StepReport>(&message);
        if (report == nullptr) continue;
        --queued;
        reported += kStepTokens;
        end_ms = report->start_ms + report->compute_ms;
      }
    }
    return end_ms;
  }

  void Sealed(const TransferOutcome& outcome) {
    if (!outcome.ok) {
      std::fprintf(stderr, "a prompt did not arrive: %s\n", outcome.cause.c_str());
      std::exit(1);
    }
    std::lock_guard lock(mutex_);
    sealed_ms_ = EpochMs();
    told_.notify_one();
  }

  const int tokens_;
  size_t bytes_ = 0;
  int turn_ = 0;
  std::mutex mutex_;
  std::condition_variable told_;
  bool news_ = false;
  double sealed_ms_ = 0;
  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<KvReceiver> receiver_;
  std::unique_ptr<Engine> engine_;
};

// How much of the transfer of a prompt is left when its prefill has ended.
void MeasureHiding(Bench* bench) {
  if (!bench->WantsTable("transfer behind a prefill")) return;
  const int tokens = bench->quick() ? 1024 : 4096;
  Hiding hiding(bench, tokens);
  double prefill_ms = hiding.PrefillMs();
  struct Link {
    double share;  // of the prefill, that the transfer takes
    std::optional<Promise> promise;
  };
  // One prompt each: it takes the better part of a minute, in which hundreds of blocks are sent.
  for (const Link& link : {Link{0.5, ValueAtMost(5, 2)}, Link{1, std::nullopt}}) {
    const double transfer_ms = prefill_ms * link.share;
    const Hiding::Times times = hiding.PrefillAndSend({static_cast<double>(hiding.bytes()) / transfer_ms * 1000, 0});
    prefill_ms = times.prefill_ms;
    char name[120];
    std::snprintf(name, sizeof name, "not hidden, %d tokens, link takes %.0f %% of the prefill", tokens, 100 * transfer_ms / prefill_ms);
    Figure figure;
    figure.table = "transfer behind a prefill";
    figure.name = name;
    figure.path = hiding.path();
    figure.threads = bench->all_threads();
    figure.unit = "%";
    figure.value = SpreadOf({100 * times.late_ms / transfer_ms});
    figure.promise = link.promise;
    bench->Print(figure);
  }
}

void Main(int argc, char** argv) {
  Bench bench(argc, argv);
  if (bench.WantsTable("transfer")) {
    for (const int tokens : {512, 2048}) MeasureSize(bench, tokens);
  }
  MeasureHiding(&bench);
}

}  // namespace
}  // namespace margay::bench

int main(int argc, char** argv) {
  margay::bench::Main(argc, argv);
  return 0;
}
