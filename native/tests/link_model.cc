// The modelled link: its arithmetic, with made-up times.
#include "core/link_model.h"

#include <limits>

#include "claim.h"

namespace margay {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kStart = 5'000 * kSecond;

std::string OneMessage() {
  Finding finding;
  LinkModel link(1e9, 2'000);
  finding.Same("arrival of 1000 bytes at 1 GB/s and 2 us", link.Carry(kStart, 1'000), kStart + 1'000 + 2'000);
  finding.Same("free", link.free_ns(), kStart + 1'000);
  LinkModel nothing(1e9, 2'000);
  finding.Same("arrival of no bytes", nothing.Carry(kStart, 0), kStart + 2'000);
  LinkModel unlimited(std::numeric_limits<double>::infinity(), 7);
  finding.Same("arrival over a link without a limit", unlimited.Carry(kStart, 1u << 30), kStart + 7);
  return finding.what();
}

std::string Queues() {
  Finding finding;
  LinkModel link(1e6, 500);
  finding.Same("first", link.Carry(kStart, 1'000), kStart + 1'000'000 + 500);
  finding.Same("second, handed over meanwhile", link.Carry(kStart + 10, 1'000), kStart + 2'000'000 + 500);
  finding.Same("third, with a clock that went back", link.Carry(kStart - 10, 1'000), kStart + 3'000'000 + 500);
  finding.Same("after a pause", link.Carry(kStart + 9'000'000, 1'000), kStart + 10'000'000 + 500);
  return finding.what();
}

// A latency delays each message by itself, not the ones behind it.
std::string LatencyOverlaps() {
  Finding finding;
  LinkModel link(1e6, kSecond);
  int64_t last = 0;
  for (int i = 0; i < 1'000; ++i) last = link.Carry(kStart, 1'000);
  finding.Same("arrival of the last of 1000 messages", last, kStart + kSecond + kSecond);
  return finding.what();
}

// Three bytes a nanosecond, one at a time: rounding each of them would make the link three times as slow.
std::string NoDrift() {
  Finding finding;
  LinkModel link(3e9, 0);
  int64_t last = 0;
  for (int i = 0; i < 3'000'000; ++i) last = link.Carry(kStart, 1);
  finding.Same("arrival of the last of 3 million bytes", last, kStart + 1'000'000);
  return finding.what();
}

std::string NeverBackwards() {
  Finding finding;
  LinkModel link(7.3e8, 1'234);
  uint64_t seed = 1;
  int64_t now = kStart, before = 0;
  for (int i = 0; i < 100'000 && !finding.any(); ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    now += static_cast<int64_t>(seed >> 53);
    const int64_t arrival = link.Carry(now, static_cast<size_t>(seed % 2'000));
    finding.Expect(arrival >= before, "a message overtook another");
    finding.Expect(arrival >= now + 1'234, "a message arrived before its latency");
    before = arrival;
  }
  return finding.what();
}

}  // namespace
}  // namespace margay

int main() {
  using namespace margay;
  Claims claims;
  claims.Check("a message arrives after its bytes and the latency", OneMessage());
  claims.Check("messages leave one behind the other", Queues());
  claims.Check("latencies overlap", LatencyOverlaps());
  claims.Check("small messages lose nothing to rounding", NoDrift());
  claims.Check("messages never overtake each other", NeverBackwards());
  return claims.ExitCode();
}
