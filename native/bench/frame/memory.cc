#include "frame/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numbers>
#include <utility>

#include "core/number_formats.h"

namespace margay::bench {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kColdBytes = size_t{640} << 20;  // more than any last-level cache in use
constexpr size_t kChunk = size_t{1} << 20;

uint64_t Next(uint64_t* state) {
  *state += 0x9e3779b97f4a7c15U;
  uint64_t z = *state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

// Box and Muller.
float Normal(uint64_t* state) {
  const uint64_t bits = Next(state);
  const double u = (static_cast<double>(bits >> 32) + 1) / 4294967297.0;
  const double v = static_cast<double>(bits & 0xffffffffU) / 4294967296.0;
  return static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v));
}

uint8_t NearestFp8(float value) {
  int best = 0;
  float error = std::numeric_limits<float>::infinity();
  for (int code = 0; code < 256; ++code) {
    const float away = std::fabs(kFp8Values[static_cast<size_t>(code)] - value);
    if (away < error) {
      best = code;
      error = away;
    }
  }
  return static_cast<uint8_t>(best);
}

// Large arrays draw from a table of normal values: four draws per random number.
template <typename T, typename Convert>
void FillFromTable(std::span<T> out, float deviation, uint64_t seed, ThreadPool* pool, Convert convert) {
  std::vector<T> table(size_t{1} << 16);
  uint64_t state = seed;
  for (T& value : table) value = convert(deviation * Normal(&state));
  const size_t chunks = (out.size() + kChunk - 1) / kChunk;
  pool->Run(static_cast<int>(chunks), [&](int chunk, int) {
    const size_t first = static_cast<size_t>(chunk) * kChunk;
    const size_t count = std::min(kChunk, out.size() - first);
    T* to = out.data() + first;
    uint64_t own = seed ^ (0x9e3779b97f4a7c15U * (static_cast<uint64_t>(chunk) + 1));
    for (size_t i = 0; i < count; i += 4) {
      uint64_t draws = Next(&own);
      for (size_t j = i; j < std::min(count, i + 4); ++j, draws >>= 16) to[j] = table[draws & 0xffffU];
    }
  });
}

}  // namespace

Buffer::Buffer(size_t bytes) : mapped_bytes_(bytes + kHugePage), bytes_(bytes) {
  mapped_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped_ == MAP_FAILED) {
    std::perror("a benchmark gets no memory");
    std::exit(1);
  }
  const auto address = reinterpret_cast<uintptr_t>(mapped_);
  data_ = reinterpret_cast<std::byte*>((address + kHugePage - 1) / kHugePage * kHugePage);
  madvise(data_, bytes, MADV_HUGEPAGE);
  for (size_t at = 0; at < bytes; at += 4096) data_[at] = std::byte{0};
}

Buffer::Buffer(Buffer&& other) noexcept
    : mapped_(std::exchange(other.mapped_, nullptr)),
      mapped_bytes_(other.mapped_bytes_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(mapped_, other.mapped_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Buffer::~Buffer() {
  if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
}

void FillNormal(std::span<float> out, float deviation, uint64_t seed) {
  for (float& value : out) value = deviation * Normal(&seed);
}

void FillNormalBf16(std::span<uint16_t> out, float deviation, uint64_t seed, ThreadPool* pool) {
  FillFromTable(out, deviation, seed, pool, FloatToBf16);
}

void FillNormalFp8(std::span<uint8_t> out, float deviation, uint64_t seed, ThreadPool* pool) {
  FillFromTable(out, deviation, seed, pool, NearestFp8);
}

void FillNormalInt8(std::span<int8_t> out, float deviation, uint64_t seed, ThreadPool* pool) {
  FillFromTable(out, deviation, seed, pool,
                [](float value) { return static_cast<int8_t>(std::clamp(std::lround(value), -127L, 127L)); });
}

int ColdCopies(size_t bytes) {
  return static_cast<int>(std::max<size_t>(2, (kColdBytes + bytes - 1) / std::max<size_t>(1, bytes)));
}

}  // namespace margay::bench
