#include "kv/pool_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <string>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010  // Linux 5.1, older headers lack it
#endif

namespace margay {
namespace {

Status IoError(const char* what) { return {Code::kIo, std::string(what) + ": " + std::strerror(errno)}; }

// The rows begin on a page of memory, so that large copies are aligned.
size_t HeadBytes(int blocks) {
  constexpr size_t kAlign = 4096;
  const size_t bytes = sizeof(PoolHead) + static_cast<size_t>(blocks) * sizeof(uint32_t);
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

}  // namespace

Result<std::unique_ptr<PoolImage>> PoolImage::Create(const KvLayout& layout, int blocks) {
  if (layout.attentions <= 0 || layout.row_values <= 0) return Status(Code::kBadArgument, "KV layout without rows");
  if (blocks <= 0) return Status(Code::kBadArgument, "a KV pool needs at least one block");
  const size_t limit = static_cast<size_t>(std::numeric_limits<off_t>::max()) / 2;
  if (layout.block_bytes() > limit / static_cast<size_t>(blocks))
    return Status(Code::kBadArgument, "KV pool too large");

  std::unique_ptr<PoolImage> image(new PoolImage);
  image->layout_ = layout;
  image->blocks_ = blocks;
  image->head_bytes_ = HeadBytes(blocks);
  image->bytes_ = image->head_bytes_ + layout.block_bytes() * static_cast<size_t>(blocks);
  image->fd_ = memfd_create("margay-kv", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (image->fd_ < 0) return IoError("memfd_create for the KV pool");
  if (ftruncate(image->fd_, static_cast<off_t>(image->bytes_)) != 0) return IoError("sizing the KV pool");
  void* base = mmap(nullptr, image->bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, image->fd_, 0);
  if (base == MAP_FAILED) return IoError("mapping the KV pool");
  image->base_ = static_cast<std::byte*>(base);
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
  // Kernels without the write seal still keep the size.
  if (fcntl(image->fd_, F_ADD_SEALS, kSeals | F_SEAL_FUTURE_WRITE) != 0 &&
      fcntl(image->fd_, F_ADD_SEALS, kSeals) != 0) {
    return IoError("sealing the KV pool");
  }
  PoolHead* head = image->head();
  head->magic = PoolHead::kMagic;
  head->head_bytes = static_cast<uint32_t>(image->head_bytes_);
  head->blocks = blocks;
  head->page_bytes = layout.page_bytes();
  head->attentions = layout.attentions;
  return image;
}

Result<std::unique_ptr<PoolImage>> PoolImage::Map(int fd, const KvLayout& layout) {
  std::unique_ptr<PoolImage> image(new PoolImage);
  image->fd_ = fd;
  image->layout_ = layout;
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) return Status(Code::kBadArgument, "peer's pool is not sealed");
  struct stat facts{};
  if (fstat(fd, &facts) != 0) return IoError("looking at the peer's pool");
  if (facts.st_size < static_cast<off_t>(sizeof(PoolHead)))
    return Status(Code::kBadArgument, "peer's pool is too small");
  image->bytes_ = static_cast<size_t>(facts.st_size);
  void* base = mmap(nullptr, image->bytes_, PROT_READ, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return IoError("mapping the peer's pool");
  image->base_ = static_cast<std::byte*>(base);
  // Read once: the peer may change its head at any time, the size is what the seal promises.
  const PoolHead head = *image->head();
  if (head.magic != PoolHead::kMagic || head.blocks <= 0 || head.page_bytes != layout.page_bytes() ||
      head.attentions != layout.attentions || head.head_bytes != HeadBytes(head.blocks) ||
      image->bytes_ < head.head_bytes ||
      (image->bytes_ - head.head_bytes) / layout.block_bytes() != static_cast<size_t>(head.blocks)) {
    return Status(Code::kBadArgument, "peer's pool has another layout");
  }
  image->head_bytes_ = head.head_bytes;
  image->blocks_ = head.blocks;
  return image;
}

PoolImage::~PoolImage() {
  if (base_ != nullptr) munmap(base_, bytes_);
  if (fd_ >= 0) close(fd_);
}

}  // namespace margay
