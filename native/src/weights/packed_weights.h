// Weights in the layout a backend computes with, in one read-only range of memory.
//
// With a folder the range is a file named by its content's key: written aside, synced, headed, renamed, then mapped
// shared by every process of the host, so that all of them hold one copy. A file that is short, torn or changed is
// noticed before use and made anew, yet a start does not read it: the header is written after the payload has reached
// the disk, so a file with a good header was whole once; and the identity of the file (size, inode, times that nobody
// can set) is remembered when its whole checksum was last found right. Any other identity is checked in full, so
// `touch` asks for a full check. Without a folder the range is private memory.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/file.h"
#include "core/status.h"
#include "core/thread_pool.h"

namespace margay {

// What to pack, in order. Offsets are the same for the same checkpoint and code, so the file needs no table.
class PackPlan {
 public:
  // Writes a part, or one piece of it; `out` is the part's begin, zero-filled before. Called on any thread.
  using Fill = std::function<Status(std::byte* out)>;
  using FillPiece = std::function<Status(std::byte* out, int piece)>;

  // Returns the part's offset, a multiple of 64.
  size_t Add(size_t bytes, Fill fill) {
    return AddPieces(bytes, 1, [fill = std::move(fill)](std::byte* out, int) { return fill(out); });
  }
  // Pieces are filled in parallel.
  size_t AddPieces(size_t bytes, int pieces, FillPiece fill);
  size_t bytes() const { return bytes_; }

 private:
  friend class PackedWeights;
  struct Part {
    size_t offset;
    int pieces;
    FillPiece fill;
  };
  Status FillAll(std::byte* base, ThreadPool* pool) const;
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
