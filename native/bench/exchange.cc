// exchange: dispatch and combine of one layer between two ranks on this host, rows as wide as LongCat-Flash's (6144, top
// 12 of 512 experts and 256 zero-computation experts), in the same rounds as their limits: memcpy of the same bytes by
// two threads, and one connection that carries the same bytes both ways, in the same number of messages.
//
// One layer is DispatchSend, DispatchReceive, PutResult of every row, CombineSend and CombineReceive on both ranks. Rows
// are encoded where the peer reads them, which is the only copy over shared memory. Not in the first lines: what the
// experts read and the owners add up, which lies where it was sent; "and read" has both.
#include <poll.h>

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

// Runs `body` on two threads, each with its number, and tells how long both took.
double Seconds(const std::function<void(int)>& body) {
  std::atomic<int> ready{0};
  const auto start_together = [&] {
    ready.fetch_add(1);
    while (ready.load() < 2) std::this_thread::yield();
  };
  double seconds = 0;
  std::thread other([&] {
    start_together();
    body(1);
  });
  start_together();
  const auto start = std::chrono::steady_clock::now();
  body(0);
  other.join();
  seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return seconds;
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
    Seconds([&](int member) {
      GroupSpec spec = spec_;
      spec.self = member;
      exchanges_[static_cast<size_t>(member)] = Must(endpoints_[static_cast<size_t>(member)]->Join(spec, {}));
    });
    for (uint64_t member = 0; member < 2; ++member) rows_[member] = MakeRows(spec_, rows, member);
    result_.resize(kHidden, 1);
  }

  // `read`: with the experts' reading of rows and the owners' adding up.
  void Layer(int member, bool read) {
    ExpertExchange* exchange = exchanges_[static_cast<size_t>(member)].get();
    const RowsOf& mine = rows_[static_cast<size_t>(member)];
    std::span<const ReceivedRow> received;
    thread_local std::vector<float> row(kHidden);
    Must(exchange->DispatchSend(0, mine.Dispatch()));
    Must(exchange->DispatchReceive(0, &received));
    for (int i = 0; i < static_cast<int>(received.size()); ++i) {
      if (received[static_cast<size_t>(i)].source == member && !read) continue;  // nothing is sent for these
      if (read) exchange->Decode(i, row.data());
      exchange->PutResult(i, 0, result_.data());
    }
    Must(exchange->CombineSend(0));
    Must(exchange->CombineReceive(0));
    for (int own = 0; read && own < mine.rows; ++own) exchange->AddResults(own, row.data());
  }
  void Layers(int member, int layers, bool read) {
    Must(exchanges_[static_cast<size_t>(member)]->BeginStep());
    for (int layer = 0; layer < layers; ++layer) Layer(member, read);
  }
  // That one rank sends in one layer.
  size_t Bytes() {
    const ExchangeCounters before = exchanges_[0]->counters();
    Seconds([&](int member) { Layers(member, 1, false); });
    const ExchangeCounters after = exchanges_[0]->counters();
    return after.dispatch_bytes - before.dispatch_bytes + after.combine_bytes - before.combine_bytes;
  }

 private:
  GroupSpec spec_;
  std::array<std::unique_ptr<ExchangeEndpoint>, 2> endpoints_;
  std::array<std::unique_ptr<ExpertExchange>, 2> exchanges_;
  std::array<RowsOf, 2> rows_;
  std::vector<float> result_;
};

// Both directions at once; every message waits for the one before, as dispatch and combine do.
class RawSockets {
 public:
  RawSockets() {
    const Fd listener = Must(Listen(Must(TcpAddress("127.0.0.1", 0))));
    ends_[0] = Must(StartConnect(Must(TcpAddress("127.0.0.1", PortOf(listener)))));
    while (!(ends_[1] = Accept(listener))) std::this_thread::yield();
  }
  void Exchange(int member, std::span<const std::byte> from, std::span<std::byte> to, int times) {
    const Fd& end = ends_[static_cast<size_t>(member)];
    for (int i = 0; i < times; ++i) {
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
  }

 private:
  static size_t Moved(ssize_t moved) {
    if (moved < 0) std::abort();
    return static_cast<size_t>(moved);
  }
  std::array<Fd, 2> ends_;
};

struct Way {
  std::string name, limited_by;
  std::function<void()> run, limit;
  std::optional<Promise> promise;
};

void Measure(const Bench& bench, int rows, PayloadFormat payload, const std::string& format) {
  Pair local(payload, rows, true), remote(payload, rows, false);
  const size_t bytes = local.Bytes();
  remote.Bytes();
  const int layers = std::max(4, static_cast<int>((size_t{64} << 20) / bytes));
  const int far_layers = std::max(2, layers / 4);
  std::array<std::vector<std::byte>, 4> memory;
  for (auto& area : memory) area.assign(bytes, std::byte{1});
  RawSockets sockets;
  const auto copy = [&](int member) {
    const auto m = static_cast<size_t>(member);
    for (int i = 0; i < layers; ++i) {
      std::memcpy(memory[m + 2].data(), memory[m].data(), bytes);
      asm volatile("" : : "r"(memory[m + 2].data()) : "memory");
    }
  };
  const auto raw = [&](int member) {
    const auto m = static_cast<size_t>(member);
    sockets.Exchange(member, std::span(memory[m]).first(bytes / 2), std::span(memory[m + 2]).first(bytes / 2), 2 * far_layers);
  };
  // fp8 is made with arithmetic, which no copy has.
  const std::optional<Promise> promise = payload == PayloadFormat::kBf16 ? std::optional(ShareOfLimit(0.7, 1)) : std::nullopt;
  const std::vector<Way> ways = {
      {"shared memory", "memcpy", [&] { Seconds([&](int m) { local.Layers(m, layers, false); }); }, [&] { Seconds(copy); }, promise},
      {"shared memory and read", "memcpy", [&] { Seconds([&](int m) { local.Layers(m, layers, true); }); }, [&] { Seconds(copy); }, {}},
      {"TCP", "raw sockets", [&] { Seconds([&](int m) { remote.Layers(m, far_layers, false); }); }, [&] { Seconds(raw); }, promise},
  };
  for (const Way& way : ways) {
    const double moved = 2.0 * static_cast<double>(bytes) * (way.limited_by == "memcpy" ? layers : far_layers) / 1e9;
    std::vector<double> rates, limits, shares;
    for (int round = -2; round < (bench.quick() ? 5 : 15); ++round) {
      const auto timed = [](const std::function<void()>& run) {
        const auto start = std::chrono::steady_clock::now();
        run();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      };
      const double limit = timed(way.limit), seconds = timed(way.run);
      if (round < 0) continue;
      rates.push_back(moved / seconds);
      limits.push_back(moved / limit);
      shares.push_back(limit / seconds);
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
    figure.promise = way.promise;
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
