// transfer: KV pages of full size (72 KiB, 56 attentions) from one pool to another of the same process, by shared memory
// and by TCP on this host, in the same rounds as their limits: memcpy of the same pages by one thread, and a blocking
// socket between two threads that sends and receives the same pages in place. Both sides of a transfer are one thread
// each. Not measured: other hosts, and a model that computes meanwhile.
#include <fcntl.h>
#include <sys/socket.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "../tests/kv_sides.h"
#include "frame.h"
#include "core/socket.h"

namespace margay::bench {
namespace {

constexpr KvLayout kFull{56, 576, KvType::kBf16};

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

class Sides {
 public:
  explicit Sides(int tokens) : tokens_(tokens), decoder_(true, Blocks(), kFull), prefiller_(Blocks(), kFull) {
    const KvMemory from = prefiller_.pool->memory(), to = decoder_.pool->memory();
    FillNormal({reinterpret_cast<float*>(from.base), bytes() / sizeof(float)}, 1, 1);
    std::memset(to.base, 1, bytes());
  }
  size_t bytes() const { return kFull.block_bytes() * static_cast<size_t>(Blocks()); }

  void Copy() {
    for (size_t at = 0; at < bytes(); at += kFull.page_bytes()) std::memcpy(To(at), From(at), kFull.page_bytes());
  }

  void Raw() {
    const auto each = [&](const std::function<ssize_t(size_t, size_t)>& move) {
      for (size_t at = 0; at < bytes();) {
        const ssize_t moved = move(at, kFull.page_bytes() - at % kFull.page_bytes());
        if (moved <= 0) std::abort();
        at += static_cast<size_t>(moved);
      }
    };
    std::thread sender([&] { each([&](size_t at, size_t some) { return send(raw_.from.get(), From(at), some, 0); }); });
    each([&](size_t at, size_t some) { return recv(raw_.to.get(), To(at), some, MSG_WAITALL); });
    sender.join();
  }

  void Transfer(bool shared_memory) {
    const SequenceRef sequence{0, turn_};
    const auto tokens = TokensFrom(turn_++ * tokens_, tokens_);
    const SequenceKvId received = decoder_.Expect(sequence, tokens), sent = prefiller_.Open(tokens);
    Must(prefiller_.sender->Begin(sequence, sent, tokens_, decoder_.Target(sequence, shared_memory)));
    for (int attention = 0; attention < kFull.attentions; ++attention) {
      prefiller_.sender->Written(sequence, attention, tokens_);
    }
    const bool whole = prefiller_.outcomes.Of(sequence).ok && decoder_.outcomes.Of(sequence).ok;
    if (!whole) std::abort();
    decoder_.Drop(sequence, received);
    prefiller_.pool->Close(sent, false);
  }

 private:
  int Blocks() const { return tokens_ / kBlockTokens; }
  std::byte* From(size_t at) const { return prefiller_.pool->memory().base + at; }
  std::byte* To(size_t at) const { return decoder_.pool->memory().base + at; }

  const int tokens_;
  int turn_ = 0;
  Decoder decoder_;
  Prefiller prefiller_;
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

void Main(int argc, char** argv) {
  const Bench bench(argc, argv);
  if (!bench.Wants("transfer", "")) return;
  for (const int tokens : {512, 2048}) MeasureSize(bench, tokens);
}

}  // namespace
}  // namespace margay::bench

int main(int argc, char** argv) {
  margay::bench::Main(argc, argv);
  return 0;
}
