// Files and mappings as owned values; every failure is a sentence that names the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/status.h"

namespace margay {

// What tells two states of a file apart without reading it.
struct FileIdentity {
  uint64_t size = 0;
  uint64_t inode = 0;
  uint64_t device = 0;
  int64_t modified_ns = 0;
  int64_t changed_ns = 0;  // unlike `modified_ns` nobody can set it
};

class File {
 public:
  static Result<File> Open(const std::string& path);
  // Writable and new: an existing file is an error.
  static Result<File> Create(const std::string& path);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  int fd() const { return fd_; }
  const std::string& path() const { return path_; }
  Result<FileIdentity> Identity() const;
  // All bytes, or an error: a short file is one.
  Status ReadAt(uint64_t offset, void* out, size_t bytes) const;
  Status WriteAll(std::string_view bytes) const;
  Status Sync() const;

 private:
  File(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  Status Failure(const char* verb) const;
  int fd_ = -1;
  std::string path_;
};

// Owns a range of mapped memory.
class Mapping {
 public:
  Mapping() = default;
  static Result<Mapping> Anonymous(size_t bytes);
  // The first `bytes` bytes of the file, shared.
  static Result<Mapping> OfFile(const File& file, size_t bytes, bool writable);
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::byte* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  Mapping(std::byte* data, size_t bytes) : data_(data), bytes_(bytes) {}
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// Maps the pages of a range that is only read, from disk where they are not in memory yet.
void TouchPages(std::span<const std::byte> range);

// Whole text of a file of at most `limit` bytes.
Result<std::string> ReadText(const std::string& path, size_t limit);

// Written aside, synced and renamed: readers see all of it or nothing.
Status WriteTextAtomically(const std::string& path, std::string_view text);

// Creates the folder and its parents where missing.
Status MakeFolder(const std::string& path);

// Makes a rename in `folder` survive a crash.
Status SyncFolder(const std::string& folder);

bool FileExists(const std::string& path);

}  // namespace margay
