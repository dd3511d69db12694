// exchange: dispatch and combine of one layer between two ranks on this host, rows as wide as LongCat-Flash's (6144, top
// 12 of 512 experts), every row for experts of the other rank. In the same rounds as their limits: memcpy of the same
// bytes by the rank that is to have them, and one connection that carries them both ways in as many messages.
//
// Timed is all that the exchange does: writing every row and result as it travels, where its maker hands it over and as
// fp32 that a cache still holds, as in a model; sending; receiving; reading each from where it lies, into fp32. Copied is
// what a thread has just written, once each way, by whoever is to have it; nobody reads the copy. Before each part other
// memory passes through the caches, as weights do in a model.
#include <poll.h>
#include <sched.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "../tests/exchange_group.h"
#include "comm/endpoint.h"
#include "core/socket.h"
#include "frame.h"

namespace margay::bench {
namespace {

constexpr int kHidden = 6144;

template <typename T>
T Must(Result<T> result) {
  if (result.ok()) return std::move(*result);
  std::fprintf(stderr, "exchange: %s\n", result.status().message().c_str());
  std::exit(1);
}

void Must(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "exchange: %s\n", status.message().c_str());
  std::exit(1);
}

// Two threads meet here again and again.
class Barrier {
 public:
  void Meet() {
    const int turn = turn_.load(std::memory_order_acquire);
    if (here_.fetch_add(1, std::memory_order_acq_rel) == 1) {
      here_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    for (int tries = 0; turn_.load(std::memory_order_acquire) == turn; ++tries) {
      if (tries > 1'000'000) std::this_thread::yield();
    }
  }

 private:
  std::atomic<int> here_{0}, turn_{0};
};

void OnBoth(const std::function<void(int)>& body) {
  std::thread other([&] { body(1); });
  body(0);
  other.join();
}

// The two cores between which everything is moved, for as long as it lives; other threads are left alone.
class OwnCore {
 public:
  explicit OwnCore(int member) {
    sched_getaffinity(0, sizeof before_, &before_);
    cpu_set_t own;
    CPU_ZERO(&own);
    for (int core = 0, at = -1; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &before_) && ++at == member) CPU_SET(core, &own);
    }
    sched_setaffinity(0, sizeof own, &own);  // fails where there is but one core
  }
  ~OwnCore() { sched_setaffinity(0, sizeof before_, &before_); }

 private:
  cpu_set_t before_;
};

// Reads more than a core's own caches hold.
void PassThroughCaches(int member) {
  static const std::array<std::vector<uint64_t>, 2> kOther = {std::vector<uint64_t>(1 << 20, 1), std::vector<uint64_t>(1 << 20, 1)};
  uint64_t sum = 0;
  for (size_t i = 0; i < kOther[0].size(); i += 8) sum += kOther[static_cast<size_t>(member)][i];
  asm volatile("" : : "r"(sum));
}

// The timed parts of `laps` laps, on two threads that begin and end each part together.
struct Part {
  std::function<void(int member)> prepare, run;
};
struct Timed {
  double seconds = 0;
  bool disturbed = false;
};
Timed Time(int laps, const std::vector<Part>& parts) {
  Barrier barrier;
  double seconds = 0;
  std::array<bool, 2> disturbed{};
  OnBoth([&](int member) {
    const OwnCore core(member);
    const auto began = std::chrono::steady_clock::now();
    const double stolen = StolenFromThread();
    for (int lap = 0; lap < laps; ++lap) {
      for (const Part& part : parts) {
        PassThroughCaches(member);
        part.prepare(member);
        barrier.Meet();
        const auto start = std::chrono::steady_clock::now();
        part.run(member);
        barrier.Meet();
        if (member == 0) seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      }
    }
    const double all = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    disturbed[static_cast<size_t>(member)] = Disturbs(StolenFromThread() - stolen, all);
  });
  return {seconds, disturbed[0] || disturbed[1]};
}

// Writes every value anew.
void Freshen(std::vector<float>* values) {
  for (float& value : *values) value = -value;
  asm volatile("" : : "r"(values->data()) : "memory");
}

// Two ranks of this process, each with its own endpoint, as if they were processes.
class Pair {
 public:
  Pair(PayloadFormat payload, int rows, bool shared_memory) {
    spec_.epoch = 1;
    spec_.members.resize(2);
    spec_.owners = DealtOut(512, 2);
    spec_.hidden = kHidden;
    spec_.topk = 12;
    spec_.max_rows = rows;
    spec_.payload = payload;
    spec_.deadline_ms = 60'000;
    std::array<GroupSpec, 2> specs;
    for (size_t member = 0; member < 2; ++member) {
      endpoints_[member] = Must(ExchangeEndpoint::Open("127.0.0.1", 0));
      spec_.members[member] = {"", "127.0.0.1", endpoints_[member]->port(), shared_memory ? "here" : std::to_string(member)};
    }
    OnBoth([&](int member) {
      const auto m = static_cast<size_t>(member);
      GroupSpec spec = spec_;
      spec.self = member;
      exchanges_[m] = Must(endpoints_[m]->Join(spec, {}));
      rows_[m] = MakeRows(spec_, rows, m);
      // Member 0 has the even experts.
      for (size_t i = 0; i < rows_[m].chosen.size(); ++i) rows_[m].chosen[i] = static_cast<int32_t>(i % 12 * 40 + i / 12 % 20 * 2) + 1 - member;
      made_[m].resize(kHidden, 1);
      scratch_[m].resize(kHidden);
      sums_[m].resize(kHidden);
    });
  }

  std::vector<Part> Layer() {
    const auto make = [this](int member) { Freshen(&made_[static_cast<size_t>(member)]); };
    const auto begin = [this, make](int member) {
      make(member);
      Must(exchanges_[static_cast<size_t>(member)]->BeginStep());
    };
    return {{begin, [this](int member) { Dispatch(static_cast<size_t>(member)); }},
            {make, [this](int member) { Combine(static_cast<size_t>(member)); }}};
  }
  size_t DispatchBytes() const { return exchanges_[0]->counters().dispatch_bytes; }
  size_t CombineBytes() const { return exchanges_[0]->counters().combine_bytes; }

 private:
  void Dispatch(size_t m) {
    for (int row = 0; row < rows_[m].rows; ++row) exchanges_[m]->PutRow(row, made_[m].data());
    Must(exchanges_[m]->DispatchSend(0, rows_[m].Dispatch()));
    Must(exchanges_[m]->DispatchReceive(0, &received_[m]));
    for (size_t i = 0; i < received_[m].size(); ++i) exchanges_[m]->Decode(static_cast<int>(i), scratch_[m].data());
  }
  void Combine(size_t m) {
    for (size_t i = 0; i < received_[m].size(); ++i) exchanges_[m]->PutResult(static_cast<int>(i), 0, made_[m].data());
    Must(exchanges_[m]->CombineSend(0));
    Must(exchanges_[m]->CombineReceive(0));
    for (int row = 0; row < rows_[m].rows; ++row) exchanges_[m]->AddResults(row, sums_[m].data());
  }

  GroupSpec spec_;
  std::array<std::unique_ptr<ExchangeEndpoint>, 2> endpoints_;
  std::array<std::unique_ptr<ExpertExchange>, 2> exchanges_;
  std::array<RowsOf, 2> rows_;
  std::array<std::span<const ReceivedRow>, 2> received_;
  std::array<std::vector<float>, 2> made_, scratch_, sums_;
};

// The same number of bytes, written by one thread and copied by the other.
class Copies {
 public:
  Copies(size_t first, size_t second) {
    for (size_t m = 0; m < 2; ++m) {
      for (const size_t bytes : {first, second}) {
        from_[m].emplace_back(bytes / sizeof(float), 1.0F);
        to_[m].emplace_back(bytes / sizeof(float), 1.0F);
      }
    }
  }
  std::vector<Part> Layer() { return {Copy(0), Copy(1)}; }
  std::span<const std::byte> From(int member, size_t part) { return std::as_bytes(std::span(from_[static_cast<size_t>(member)][part])); }
  std::span<std::byte> To(int member, size_t part) { return std::as_writable_bytes(std::span(to_[static_cast<size_t>(member)][part])); }
  std::function<void(int)> Fresh(size_t part) {
    return [this, part](int member) { Freshen(&from_[static_cast<size_t>(member)][part]); };
  }

 private:
  Part Copy(size_t part) {
    return {Fresh(part), [this, part](int member) {
              std::memcpy(To(member, part).data(), From(1 - member, part).data(), To(member, part).size());
              asm volatile("" : : "r"(To(member, part).data()) : "memory");
            }};
  }
  std::array<std::vector<std::vector<float>>, 2> from_, to_;
};

// Both directions at once.
class RawSockets {
 public:
  RawSockets() {
    const Fd listener = Must(Listen(Must(TcpAddress("127.0.0.1", 0))));
    ends_[0] = Must(StartConnect(Must(TcpAddress("127.0.0.1", PortOf(listener)))));
    while (!(ends_[1] = Accept(listener))) std::this_thread::yield();
  }
  void Exchange(int member, std::span<const std::byte> from, std::span<std::byte> to) {
    const Fd& end = ends_[static_cast<size_t>(member)];
    for (size_t sent = 0, received = 0; sent < from.size() || received < to.size();) {
      const size_t out = sent < from.size() ? Moved(Send(end, from.subspan(sent))) : 0;
      const size_t in = received < to.size() ? Moved(Receive(end, to.subspan(received))) : 0;
      sent += out;
      received += in;
      if (out + in > 0) continue;
      pollfd polled{end.get(), static_cast<short>((sent < from.size() ? POLLOUT : 0) | (received < to.size() ? POLLIN : 0)), 0};
      poll(&polled, 1, -1);
    }
  }

 private:
  static size_t Moved(ssize_t moved) {
    if (moved < 0) std::abort();
    return static_cast<size_t>(moved);
  }
  std::array<Fd, 2> ends_;
};

void Measure(const Bench& bench, int rows, PayloadFormat payload, const std::string& format) {
  Pair local(payload, rows, true), remote(payload, rows, false);
  Time(1, local.Layer());
  Copies copies(local.DispatchBytes(), local.CombineBytes());
  const size_t bytes = local.DispatchBytes() + local.CombineBytes();
  RawSockets sockets;
  std::vector<Part> carried;
  for (const size_t part : {0, 1}) {
    carried.push_back({copies.Fresh(part), [&, part](int m) { sockets.Exchange(m, copies.From(m, part), copies.To(m, part)); }});
  }
  struct Way {
    std::string name, limited_by;
    std::vector<Part> run, limit;
    int laps;
    bool alone;  // no threads beside the two, so that whoever takes a core is a stranger
  };
  const int laps = std::max(4, static_cast<int>((size_t{32} << 20) / bytes));
  const std::array<Way, 2> ways = {Way{"shared memory", "memcpy", local.Layer(), copies.Layer(), laps, true},
                                   Way{"TCP on this host", "raw socket", remote.Layer(), carried, std::max(2, laps / 4), false}};
  for (const Way& way : ways) {
    const double moved = 2.0 * static_cast<double>(bytes) * way.laps / 1e9;
    std::vector<double> rates, limits, shares;
    const size_t rounds = bench.quick() ? 7 : 25;
    for (size_t round = 0; round < 4 * rounds && rates.size() < rounds; ++round) {
      const Timed limit = Time(way.laps, way.limit), own = Time(way.laps, way.run);
      if (round < 2 || (way.alone && (limit.disturbed || own.disturbed))) continue;
      rates.push_back(moved / own.seconds);
      limits.push_back(moved / limit.seconds);
      shares.push_back(limit.seconds / own.seconds);
    }
    Figure figure;
    figure.table = "exchange";
    figure.name = way.name + ", " + format + ", " + std::to_string(rows) + " rows";
    figure.threads = 2;
    figure.unit = "GB/s";
    figure.value = SpreadOf(rates);
    figure.limit = SpreadOf(limits).median;
    figure.limited_by = way.limited_by;
    figure.share = SpreadOf(shares);
    figure.disturbed = rates.size() < rounds;
    // fp8 is made with arithmetic, which no copy has.
    if (payload == PayloadFormat::kBf16) figure.promise = ShareOfLimit(0.7, 1);
    bench.Print(figure);
  }
}

void Main(int argc, char** argv) {
  const Bench bench(argc, argv);
  if (!bench.Wants("exchange", "")) return;
  for (const int rows : {32, 512}) {
    Measure(bench, rows, PayloadFormat::kBf16, "bf16");
    Measure(bench, rows, PayloadFormat::kFp8, "fp8");
  }
}

}  // namespace
}  // namespace margay::bench

int main(int argc, char** argv) {
  margay::bench::Main(argc, argv);
  return 0;
}
