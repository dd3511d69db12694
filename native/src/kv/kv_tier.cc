#include "kv/kv_tier.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "core/checksum.h"

namespace margay {
namespace {

// A file of its full size, so that no write into the mapping can find the disk full. Its name is taken away at once.
Result<Mapping> MapFile(const std::string& folder, size_t bytes) {
  const std::string path = folder + "/kv-tier-" + std::to_string(getpid());
  if (Status made = MakeFolder(folder); !made.ok()) return made;
  Result<File> file = File::Create(path);
  if (!file.ok()) return file.status();
  unlink(path.c_str());
  if (posix_fallocate(file->fd(), 0, static_cast<off_t>(bytes)) != 0) {
    return Status(Code::kIo, "there is no room for " + std::to_string(bytes) + " bytes of KV in " + folder);
  }
  return Mapping::OfFile(*file, bytes, true);
}

}  // namespace

Result<std::unique_ptr<KvTier>> KvTier::Create(const KvTierOptions& options, const KvLayout& layout) {
  const uint64_t blocks = options.bytes / layout.block_bytes();
  if (blocks < 1 || blocks > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) {
    return Status(Code::kBadArgument, "kvTierBytes must hold from one block of " +
                                          std::to_string(layout.block_bytes()) + " bytes to 2^31 of them");
  }
  const size_t bytes = static_cast<size_t>(blocks) * layout.block_bytes();
  Result<Mapping> mapping = options.folder.empty() ? Mapping::Anonymous(bytes) : MapFile(options.folder, bytes);
  if (!mapping.ok()) return mapping.status();
  return std::unique_ptr<KvTier>(new KvTier(std::move(*mapping), layout, static_cast<int>(blocks)));
}

KvTier::KvTier(Mapping mapping, const KvLayout& layout, int capacity)
    : mapping_(std::move(mapping)),
      layout_(layout),
      capacity_(capacity),
      sums_(static_cast<size_t>(capacity) * static_cast<size_t>(layout.attentions)) {
  for (size_t slot = static_cast<size_t>(capacity); slot-- > 0;) free_.push_back(slot);
}

std::optional<BlockHash> KvTier::Save(const BlockHash& hash, const KvMemory& pool, int32_t block) {
  std::lock_guard lock(mutex_);
  if (const auto known = found_.find(hash); known != found_.end()) {
    slots_.splice(slots_.end(), slots_, known->second);
    return std::nullopt;
  }
  std::optional<BlockHash> gone;
  if (free_.empty()) {
    gone = slots_.front().hash;
    free_.push_back(slots_.front().index);
    found_.erase(*gone);
    slots_.pop_front();
    ++counters_.evicted;
  }
  const size_t slot = free_.back();
  free_.pop_back();
  for (int attention = 0; attention < layout_.attentions; ++attention) {
    Sum(slot, attention) =
        CopyWithChecksum(Page(slot, attention), pool.page(attention, block), layout_.page_bytes());
  }
  slots_.push_back({hash, slot});
  found_.emplace(hash, std::prev(slots_.end()));
  return gone;
}

void KvTier::Touch(const BlockHash& hash) {
  std::lock_guard lock(mutex_);
  if (const auto known = found_.find(hash); known != found_.end()) slots_.splice(slots_.end(), slots_, known->second);
}

bool KvTier::Load(const BlockHash& hash, const KvMemory& pool, int32_t block) {
  std::lock_guard lock(mutex_);
  const auto known = found_.find(hash);
  if (known == found_.end()) return false;
  const size_t slot = known->second->index;
  for (int attention = 0; attention < layout_.attentions; ++attention) {
    std::byte* to = pool.page(attention, block);
    if (CopyWithChecksum(to, Page(slot, attention), layout_.page_bytes()) == Sum(slot, attention)) continue;
    ++counters_.refused;
    free_.push_back(slot);
    slots_.erase(known->second);
    found_.erase(known);
    return false;
  }
  slots_.splice(slots_.end(), slots_, known->second);
  return true;
}

KvTier::Counters KvTier::counters() const {
  std::lock_guard lock(mutex_);
  Counters counters = counters_;
  counters.bytes = slots_.size() * layout_.block_bytes();
  return counters;
}

std::byte* KvTier::Find(const BlockHash& hash) {
  std::lock_guard lock(mutex_);
  const auto known = found_.find(hash);
  return known == found_.end() ? nullptr : Page(known->second->index, 0);
}

}  // namespace margay
