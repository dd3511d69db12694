#include "frame/limits.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace margay::bench {
namespace {

constexpr size_t kMemory = size_t{1} << 30;
constexpr size_t kSample = size_t{256} << 20;  // of a stream: 8 ms at 32 GB/s
constexpr size_t kItem = size_t{8} << 20;
constexpr int kStreams = 4;
constexpr size_t kAhead = 2048;
constexpr int kArithmeticItems = 64;
constexpr double kItemSeconds = 60e-6;  // long against the wake of a thread, short against a time slice

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// Reads all of [from, from + bytes) as four streams; a line of 64 bytes at a time.
uint64_t ReadStreams(const std::byte* from, size_t bytes) {
  using Line = uint64_t __attribute__((vector_size(64)));
  Line all = {};
  const size_t each = bytes / kStreams;
  for (size_t at = 0; at < each; at += sizeof(Line)) {
#pragma GCC unroll 4
    for (int stream = 0; stream < kStreams; ++stream) {
      const std::byte* p = from + static_cast<size_t>(stream) * each + at;
      __builtin_prefetch(p + kAhead);
      all |= *reinterpret_cast<const Line*>(p);
    }
  }
  return all[0] | all[1] | all[2] | all[3] | all[4] | all[5] | all[6] | all[7];
}

bool GrantTiles() {
#if defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

int64_t ItemPasses(const Unit& unit) { return static_cast<int64_t>(kItemSeconds * unit.rate / unit.loop.operations) + 1; }

bool Spells(const std::string& path, const char* set) { return path.find(set) != std::string::npos; }

// Whether code of the path may use the unit.
bool Allowed(const std::string& path, const std::string& unit) {
  const bool amx = Spells(path, "amx");
  if (Spells(unit, "generic")) return true;
  if (Spells(unit, "amx")) return amx;
  if (Spells(unit, "neon")) return path == "neon";
  if (Spells(unit, "avx2")) return path != "generic" && path != "ref";
  return amx || Spells(path, "avx512");
}

}  // namespace

double Unit::SampleOperations() const {
  return kArithmeticItems * static_cast<double>(ItemPasses(*this)) * loop.operations;
}

Limits::Limits() : memory_(kMemory) {
  units_.push_back({"fp32 generic", Arithmetic::kFloat, Fp32Generic()});
#if defined(__x86_64__)
  const CpuFeatures features = DetectCpuFeatures();
  if (features.avx2) units_.push_back({"fp32 avx2", Arithmetic::kFloat, Fp32Avx2()});
  if (features.avx512) units_.push_back({"fp32 avx512", Arithmetic::kFloat, Fp32Avx512()});
  if (features.avx512_bf16) units_.push_back({"bf16 dot", Arithmetic::kFloat, Bf16Avx512()});
  if (features.avx512_vnni) units_.push_back({"int8 vnni", Arithmetic::kInt8, Int8Avx512()});
  if (features.amx && GrantTiles()) {
    units_.push_back({"bf16 amx", Arithmetic::kFloat, Bf16Amx()});
    units_.push_back({"int8 amx", Arithmetic::kInt8, Int8Amx()});
  }
#elif defined(__aarch64__)
  units_.push_back({"fp32 neon", Arithmetic::kFloat, Fp32Neon()});
#endif
  // The best of some: another process that takes the core must not change which unit is called the fastest.
  constexpr int64_t kPasses = 20'000;
  constexpr int kTries = 8;
  for (Unit& unit : units_) {
    for (int i = 0; i < kTries; ++i) {
      const auto start = std::chrono::steady_clock::now();
      unit.loop.run(kPasses);
      unit.rate = std::max(unit.rate, kPasses * unit.loop.operations / Seconds(start));
    }
  }
}

const Unit* Limits::BestFor(const std::string& path, Arithmetic kind) const {
  const Unit* best = nullptr;
  for (const Unit& unit : units_) {
    // What multiplies floats can multiply small integers too.
    const bool fits = unit.kind == kind || (kind == Arithmetic::kInt8 && unit.kind == Arithmetic::kFloat);
    if (kind == Arithmetic::kNone || !fits || !Allowed(path, unit.name)) continue;
    if (best == nullptr || unit.rate > best->rate) best = &unit;
  }
  return best;
}

double Limits::StreamSeconds(ThreadPool* pool) {
  const std::byte* from = NextPiece(kSample);
  std::vector<uint64_t> seen(static_cast<size_t>(pool->threads()) * 8);
  const auto start = std::chrono::steady_clock::now();
  pool->Run(static_cast<int>(kSample / kItem), [&](int item, int thread) {
    seen[static_cast<size_t>(thread) * 8] |= ReadStreams(from + static_cast<size_t>(item) * kItem, kItem);
  });
  const double seconds = Seconds(start);
  asm volatile("" : : "r"(seen.data()) : "memory");
  return seconds;
}

double Limits::CopySeconds(ThreadPool* pool) {
  std::byte* piece = NextPiece(kSample);
  const auto start = std::chrono::steady_clock::now();
  pool->Run(static_cast<int>(kSample / 2 / kItem), [&](int item, int) {
    std::byte* from = piece + 2 * static_cast<size_t>(item) * kItem;
    std::memcpy(from + kItem, from, kItem);
  });
  return Seconds(start);
}

double Limits::ArithmeticSeconds(const Unit& unit, ThreadPool* pool) const {
  const int64_t passes = ItemPasses(unit);
  const auto start = std::chrono::steady_clock::now();
  pool->Run(kArithmeticItems, [&](int, int) { unit.loop.run(passes); });
  return Seconds(start);
}

double Limits::StreamBytes() { return static_cast<double>(kSample); }
double Limits::CopyBytes() { return static_cast<double>(kSample / 2); }

std::byte* Limits::NextPiece(size_t bytes) {
  if (at_ + bytes > memory_.bytes()) at_ = 0;
  at_ += bytes;
  return memory_.data() + at_ - bytes;
}

}  // namespace margay::bench
