// Memory of benchmarks: on huge pages, every byte touched before it is timed, filled with values as models have them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/thread_pool.h"

namespace margay::bench {

// Owns zeroed memory, aligned to 2 MiB.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  size_t bytes() const { return bytes_; }
  std::byte* data() const { return data_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void* mapped_ = nullptr;
  size_t mapped_bytes_ = 0;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// Normal values with mean 0. Random bits would be denormals and not-a-numbers, which run several times slower.
void FillNormal(std::span<float> out, float deviation, uint64_t seed);
void FillNormalBf16(std::span<uint16_t> out, float deviation, uint64_t seed, ThreadPool* pool);
// Codes of e4m3; `deviation` of the coded values, about 64 uses its range well.
void FillNormalFp8(std::span<uint8_t> out, float deviation, uint64_t seed, ThreadPool* pool);
void FillNormalInt8(std::span<int8_t> out, float deviation, uint64_t seed, ThreadPool* pool);

// How many copies of something of this size are needed for each to have left every cache when its turn comes again.
int ColdCopies(size_t bytes);

}  // namespace margay::bench
