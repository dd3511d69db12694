#include "kv/pool_image.h"

#include <limits>
#include <utility>

namespace margay {
namespace {

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

  const size_t head_bytes = HeadBytes(blocks);
  Result<SealedMemory> memory = SealedMemory::Create("margay-kv", head_bytes + layout.block_bytes() * static_cast<size_t>(blocks));
  if (!memory.ok()) return memory.status();
  std::unique_ptr<PoolImage> image(new PoolImage(std::move(*memory), layout));
  image->blocks_ = blocks;
  image->head_bytes_ = head_bytes;
  PoolHead* head = image->head();
  head->magic = PoolHead::kMagic;
  head->head_bytes = static_cast<uint32_t>(image->head_bytes_);
  head->blocks = blocks;
  head->page_bytes = layout.page_bytes();
  head->attentions = layout.attentions;
  return image;
}

Result<std::unique_ptr<PoolImage>> PoolImage::Map(int fd, const KvLayout& layout) {
  Result<SealedMemory> memory = SealedMemory::Map(Fd(fd));
  if (!memory.ok()) return memory.status();
  if (memory->bytes() < sizeof(PoolHead)) return Status(Code::kBadArgument, "peer's pool is too small");
  std::unique_ptr<PoolImage> image(new PoolImage(std::move(*memory), layout));
  const size_t bytes = image->memory_.bytes();
  // Read once: the peer may change its head at any time, the size is what the seal promises.
  const PoolHead head = *image->head();
  if (head.magic != PoolHead::kMagic || head.blocks <= 0 || head.page_bytes != layout.page_bytes() ||
      head.attentions != layout.attentions || head.head_bytes != HeadBytes(head.blocks) ||
      bytes < head.head_bytes ||
      (bytes - head.head_bytes) / layout.block_bytes() != static_cast<size_t>(head.blocks)) {
    return Status(Code::kBadArgument, "peer's pool has another layout");
  }
  image->head_bytes_ = head.head_bytes;
  image->blocks_ = head.blocks;
  return image;
}

}  // namespace margay
