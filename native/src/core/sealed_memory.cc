#include "core/sealed_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010  // Linux 5.1, older headers lack it
#endif

namespace margay {
namespace {

Status IoError(const char* what) { return {Code::kIo, std::string(what) + ": " + std::strerror(errno)}; }

}  // namespace

Result<SealedMemory> SealedMemory::Create(const char* name, size_t bytes) {
  SealedMemory memory;
  memory.fd_.Reset(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.fd_) return IoError("memfd_create");
  if (ftruncate(memory.fd(), static_cast<off_t>(bytes)) != 0) return IoError("sizing shared memory");
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd(), 0);
  if (base == MAP_FAILED) return IoError("mapping shared memory");
  memory.base_ = static_cast<std::byte*>(base);
  memory.bytes_ = bytes;
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
  // Kernels without the write seal still keep the size.
  if (fcntl(memory.fd(), F_ADD_SEALS, kSeals | F_SEAL_FUTURE_WRITE) != 0 &&
      fcntl(memory.fd(), F_ADD_SEALS, kSeals) != 0) {
    return IoError("sealing shared memory");
  }
  return memory;
}

Result<SealedMemory> SealedMemory::Map(Fd fd) {
  SealedMemory memory;
  memory.fd_ = std::move(fd);
  const int seals = fcntl(memory.fd(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) return Status(Code::kBadArgument, "the peer's memory is not sealed");
  struct stat facts{};
  if (fstat(memory.fd(), &facts) != 0) return IoError("looking at the peer's memory");
  if (facts.st_size <= 0) return Status(Code::kBadArgument, "the peer's memory is empty");
  const auto bytes = static_cast<size_t>(facts.st_size);
  void* base = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, memory.fd(), 0);
  if (base == MAP_FAILED) return IoError("mapping the peer's memory");
  memory.base_ = static_cast<std::byte*>(base);
  memory.bytes_ = bytes;
  return memory;
}

SealedMemory::SealedMemory(SealedMemory&& other) noexcept
    : fd_(std::move(other.fd_)), base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

SealedMemory& SealedMemory::operator=(SealedMemory&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(base_, other.base_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

SealedMemory::~SealedMemory() {
  if (base_ != nullptr) munmap(base_, bytes_);
}

}  // namespace margay
