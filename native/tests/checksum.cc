// The checksum: the same on every code path, and no damage of the kinds that happen goes unseen.
#include "core/checksum.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <vector>

#include "claim.h"
#include "core/checksum_lanes.h"
#include "core/cpu_features.h"

namespace margay {
namespace {

// Of Bytes(73'728, 1) and its first 72, by another implementation: peers of other builds must agree.
constexpr uint64_t kKnownLong = 0x05c4028c1c2bd2d3u;
constexpr uint64_t kKnownShort = 0xa0d2cafa7fa1080cu;

std::vector<std::byte> Bytes(size_t count, uint64_t seed) {
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<std::byte>(seed >> 56);
  }
  return bytes;
}

std::string PathsAgree() {
  Finding finding;
  std::vector<ChecksumStripes> paths;
#if defined(__x86_64__)
  const CpuFeatures features = DetectCpuFeatures();
  if (features.avx2) paths.push_back(Avx2Stripes);
  if (features.avx512) paths.push_back(Avx512Stripes);
#endif
  constexpr size_t kStripes = 9;
  const auto source = Bytes(kStripes * kChecksumStripe + 1, 3);
  alignas(64) std::byte copy[kStripes * kChecksumStripe];
  uint64_t wanted[kChecksumLanes] = {1, 2, 3};
  GenericStripes(wanted, source.data() + 1, nullptr, kStripes);
  paths.push_back(GenericStripes);
  for (const ChecksumStripes path : paths) {
    for (std::byte* to : {static_cast<std::byte*>(nullptr), copy}) {
      uint64_t lanes[kChecksumLanes] = {1, 2, 3};
      std::memset(copy, 0, sizeof copy);
      path(lanes, source.data() + 1, to, kStripes);
      finding.Expect(std::memcmp(lanes, wanted, sizeof lanes) == 0, "a code path has another sum");
      finding.Expect(to == nullptr || std::memcmp(copy, source.data() + 1, sizeof copy) == 0, "a copy differs");
    }
  }
  finding.Same("sum of 72 KiB, as on other machines", Checksum(Bytes(73'728, 1).data(), 73'728), kKnownLong);
  finding.Same("sum of 72 bytes, as on other machines", Checksum(Bytes(73'728, 1).data(), 72), kKnownShort);
  return finding.what();
}

std::string CopiesAreWhole() {
  Finding finding;
  const auto source = Bytes(5000, 7);
  std::vector<std::byte> into(5200);
  for (const size_t bytes : {0, 1, 7, 8, 63, 64, 65, 255, 256, 257, 511, 512, 1023, 4096, 4999}) {
    for (size_t from = 0; from < 2; ++from) {
      const auto base = reinterpret_cast<uintptr_t>(into.data());
      for (const size_t shift : {(64 - base % 64) % 64, size_t{65} - base % 64}) {
        std::fill(into.begin(), into.end(), std::byte{0x5a});
        const uint64_t sum = CopyWithChecksum(into.data() + shift, source.data() + from, bytes);
        finding.Same("sum of a copy", sum, Checksum(source.data() + from, bytes));
        finding.Expect(std::memcmp(into.data() + shift, source.data() + from, bytes) == 0, "the copy differs");
        for (size_t i = 0; i < into.size(); ++i) {
          const bool inside = i >= shift && i < shift + bytes;
          finding.Expect(inside || into[i] == std::byte{0x5a}, "bytes beside the copy were written");
        }
      }
    }
  }
  return finding.what();
}

// All sums differ: from the original's, and so that no second bit undoes a first.
std::string EveryBitCounts() {
  Finding finding;
  for (const size_t bytes : {8, 72, 257, 1100}) {
    auto data = Bytes(bytes, bytes);
    std::set<uint64_t> seen = {Checksum(data.data(), bytes)};
    for (size_t bit = 0; bit < bytes * 8; ++bit) {
      data[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
      finding.Expect(seen.insert(Checksum(data.data(), bytes)).second, "bit " + std::to_string(bit) + " of " +
                                                                           std::to_string(bytes) + " bytes is not seen");
      data[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    }
  }
  return finding.what();
}

// Parts of another page, a part twice, a part lost, the same line of memory stuck in many words.
std::string TornCopiesAreSeen() {
  Finding finding;
  constexpr size_t kBytes = 8192;
  const auto now = Bytes(kBytes, 1), before = Bytes(kBytes, 2);
  std::set<uint64_t> seen = {Checksum(now.data(), kBytes), Checksum(before.data(), kBytes)};
  const auto expect = [&](const std::string& what, const std::vector<std::byte>& bytes) {
    finding.Expect(seen.insert(Checksum(bytes.data(), bytes.size())).second, what + " is not seen");
  };
  for (size_t cut = 64; cut < kBytes; cut += 64) {
    auto torn = now;
    std::memcpy(torn.data(), before.data(), cut);
    expect("a copy torn after " + std::to_string(cut) + " bytes", torn);
    auto swapped = now;
    std::swap_ranges(swapped.begin(), swapped.begin() + 64, swapped.begin() + static_cast<ptrdiff_t>(cut));
    expect("a line swapped with that at " + std::to_string(cut), swapped);
    auto zeroed = now;
    std::memset(zeroed.data() + cut, 0, 64);
    expect("a line of zeroes at " + std::to_string(cut), zeroed);
  }
  for (int bit = 0; bit < 64; ++bit) {
    for (const size_t distance : {8, 64, 128, 256, 512, 4096}) {
      auto stuck = now;
      for (size_t at = 0; at < kBytes; at += distance) {
        stuck[at + static_cast<size_t>(bit / 8)] ^= static_cast<std::byte>(1 << (bit % 8));
      }
      expect("bit " + std::to_string(bit) + " every " + std::to_string(distance) + " bytes", stuck);
    }
  }
  expect("a byte more", Bytes(kBytes + 1, 1));
  return finding.what();
}

}  // namespace
}  // namespace margay

int main() {
  margay::Claims claims;
  claims.Check("every code path has the same sum", margay::PathsAgree());
  claims.Check("a copy holds every byte, and its sum is that of the source", margay::CopiesAreWhole());
  claims.Check("every bit counts, and no two cancel out", margay::EveryBitCounts());
  claims.Check("torn copies and stuck lines are seen", margay::TornCopiesAreSeen());
  return claims.ExitCode();
}
