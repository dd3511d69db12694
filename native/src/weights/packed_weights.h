// Weights in the layout a backend computes with, in one read-only range of memory.
//
// With a folder the range is a file named by its content's key: written aside, synced, renamed, then mapped shared by
// every process of the host, so that all of them hold one copy. A file that is short or differs from its checksum is
// noticed before use and made anew. Without a folder the range is private memory.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/status.h"
#include "core/thread_pool.h"

namespace margay {

// What to pack, in order. Offsets are the same for the same checkpoint and code, so the file needs no table.
class PackPlan {
 public:
  using Fill = std::function<Status(std::byte* out)>;  // writes its part; zero-filled before; called on any thread

  // Returns the part's offset, a multiple of 64.
  size_t Add(size_t bytes, Fill fill);
  size_t bytes() const { return bytes_; }

 private:
  friend class PackedWeights;
  struct Part {
    size_t offset;
    Fill fill;
  };
  std::vector<Part> parts_;
  size_t bytes_ = 0;
};

class PackedWeights {
 public:
  PackedWeights() = default;
  // key: 64 hex digits, empty folder: private memory.
  static Result<PackedWeights> Materialise(const PackPlan& plan, const std::string& folder, const std::string& key,
                                           ThreadPool* pool);
  const std::byte* base() const { return base_; }
  size_t bytes() const { return bytes_; }
  bool hit() const { return hit_; }  // the file was there and whole

 private:
  Mapping mapping_;
  const std::byte* base_ = nullptr;
  size_t bytes_ = 0;
  bool hit_ = false;
};

}  // namespace margay
