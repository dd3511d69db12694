// Memory that other processes of this host may map, but only its maker may write.
#pragma once

#include <cstddef>
#include <memory>

#include "core/socket.h"
#include "core/status.h"

namespace margay {

class SealedMemory {
 public:
  // New and zeroed, under a name that /proc shows. Sealed: it can never shrink under a reader, nor be mapped writable by
  // anybody else (Linux >= 5.1).
  static Result<SealedMemory> Create(const char* name, size_t bytes);
  // Maps another's read-only after checking that it is sealed. Takes the descriptor.
  static Result<SealedMemory> Map(Fd fd);

  SealedMemory() = default;
  SealedMemory(SealedMemory&& other) noexcept;
  SealedMemory& operator=(SealedMemory&& other) noexcept;
  ~SealedMemory();

  int fd() const { return fd_.get(); }
  std::byte* base() const { return base_; }
  size_t bytes() const { return bytes_; }

 private:
  Fd fd_;
  std::byte* base_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace margay
