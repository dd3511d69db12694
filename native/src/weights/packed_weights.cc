#include "weights/packed_weights.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <thread>

#include "core/checksum.h"

namespace margay {
namespace {

constexpr size_t kHeaderBytes = 4096;
constexpr size_t kChecksumChunk = size_t{4} << 20;
constexpr size_t kPrepareChunk = size_t{16} << 20;
constexpr auto kLockPatience = std::chrono::minutes(30);
constexpr char kMagic[8] = {'M', 'A', 'R', 'G', 'A', 'Y', 'W', '2'};

struct Header {
  char magic[8];
  uint64_t payload_bytes;
  uint64_t checksum;  // of the payload
  char key[64];
  uint64_t own_checksum;  // of what stands above
};

uint64_t ChecksumOf(const std::byte* data, size_t bytes, ThreadPool* pool) {
  std::vector<uint64_t> sums((bytes + kChecksumChunk - 1) / kChecksumChunk);
  pool->Run(static_cast<int>(sums.size()), [&](int item, int) {
    const size_t at = static_cast<size_t>(item) * kChecksumChunk;
    sums[static_cast<size_t>(item)] = Checksum(data + at, std::min(kChecksumChunk, bytes - at));
  });
  return Checksum(sums.data(), sums.size() * sizeof(uint64_t));
}

uint64_t HeaderChecksum(const Header& header) {
  return Checksum(&header, offsetof(Header, own_checksum));
}

// Names a state of the file that was found whole. Every write to a file changes its identity.
std::string StateOf(const FileIdentity& identity, const Header& header) {
  std::string text = "whole";
  for (const uint64_t fact : {identity.size, identity.inode, identity.device, static_cast<uint64_t>(identity.modified_ns),
                              static_cast<uint64_t>(identity.changed_ns), header.checksum}) {
    text.append(1, ' ').append(std::to_string(fact));
  }
  return text + "\n";
}

// A memory that cannot be kept costs the next start a look.
void RememberWhole(const std::string& path, const std::string& state) { (void)WriteTextAtomically(path + ".checked", state); }

// True when the payload is what was written, by memory of an earlier look or by a look now, which is remembered.
bool IsWhole(const std::string& path, const File& file, const Header& header, const std::byte* payload,
             ThreadPool* pool) {
  const std::string memory = path + ".checked";
  const Result<FileIdentity> before = file.Identity();
  if (!before.ok()) return false;
  const std::string state = StateOf(before.value(), header);
  const Result<std::string> known = FileExists(memory) ? ReadText(memory, 1024) : Result<std::string>(std::string());
  if (known.ok() && known.value() == state) return true;
  if (ChecksumOf(payload, header.payload_bytes, pool) != header.checksum) return false;
  const Result<FileIdentity> after = file.Identity();
  if (after.ok() && StateOf(after.value(), header) == state) RememberWhole(path, state);
  return true;
}

// Maps the file when it is whole and of this key; an empty mapping otherwise.
Mapping OpenWhole(const std::string& path, const std::string& key, size_t payload_bytes, ThreadPool* pool) {
  if (!FileExists(path)) return {};
  Result<File> file = File::Open(path);
  if (!file.ok()) return {};
  const Result<FileIdentity> identity = file->Identity();
  if (!identity.ok() || identity.value().size != kHeaderBytes + payload_bytes) return {};
  Header header{};
  if (!file->ReadAt(0, &header, sizeof(header)).ok()) return {};
  const bool fits = std::memcmp(header.magic, kMagic, sizeof(kMagic)) == 0 && header.payload_bytes == payload_bytes &&
                    std::memcmp(header.key, key.data(), sizeof(header.key)) == 0 &&
                    header.own_checksum == HeaderChecksum(header);
  if (!fits) return {};
  Result<Mapping> mapping = Mapping::OfFile(*file, kHeaderBytes + payload_bytes, false);
  if (!mapping.ok()) return {};
  // Best effort: larger pages where the file system has them, and the disk at work before the first step.
  madvise(mapping->data(), mapping->size(), MADV_HUGEPAGE);
  madvise(mapping->data(), mapping->size(), MADV_WILLNEED);
  if (!IsWhole(path, *file, header, mapping->data() + kHeaderBytes, pool)) return {};
  return std::move(mapping.value());
}

// Only one process of the host packs one key; the others wait for it, and pack for themselves when it takes too long.
class FileLock {
 public:
  explicit FileLock(const std::string& path) : fd_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    const auto end = std::chrono::steady_clock::now() + kLockPatience;
    while (fd_ >= 0 && !held_ && std::chrono::steady_clock::now() < end) {
      held_ = flock(fd_, LOCK_EX | LOCK_NB) == 0;
      if (held_ || (errno != EWOULDBLOCK && errno != EINTR)) return;  // a file system without locks: nobody to wait for
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  bool held() const { return held_; }
  ~FileLock() {
    if (fd_ >= 0) close(fd_);
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int fd_;
  bool held_ = false;
};

// Maps the pages of a range that is about to be written, many at a time: one by one they cost more than what is written.
// Best effort: an older kernel maps them as they are touched.
void PrepareToWrite(std::byte* data, size_t bytes, ThreadPool* pool) {
#if defined(MADV_POPULATE_WRITE)
  pool->Run(static_cast<int>((bytes + kPrepareChunk - 1) / kPrepareChunk), [&](int item, int) {
    const size_t at = static_cast<size_t>(item) * kPrepareChunk;
    madvise(data + at, std::min(kPrepareChunk, bytes - at), MADV_POPULATE_WRITE);
  });
#else
  (void)data, (void)bytes, (void)pool;
#endif
}

// What a process that died while packing left behind. The lock is held: nobody packs this key now.
void RemoveLeftovers(const std::string& folder, const std::string& stem) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename();
    if (name.starts_with(stem) && name.ends_with(".tmp")) std::filesystem::remove(entry.path(), error);
  }
}

// A file of one key while it is made: aside, then under its name. The header comes last: what has one reached the disk
// before.
class NewFile {
 public:
  NewFile(std::string path, std::string aside) : path_(std::move(path)), aside_(std::move(aside)) { unlink(aside_.c_str()); }
  ~NewFile() { unlink(aside_.c_str()); }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // The mapping of the finished file, read-only.
  Result<Mapping> Make(const std::string& key, size_t payload_bytes, ThreadPool* pool, const std::function<Status(std::byte*)>& fill) {
    Result<File> file = File::Create(aside_);
    if (!file.ok()) return file.status();
    const size_t bytes = kHeaderBytes + payload_bytes;
    // Space is taken now: a full disk is an error here and not a fault while the mapping is written.
    if (const int error = posix_fallocate(file->fd(), 0, static_cast<off_t>(bytes)); error != 0) {
      return Status(Code::kIo, aside_ + " cannot hold " + std::to_string(bytes) + " bytes: " + std::strerror(error));
    }
    Result<Mapping> mapping = Mapping::OfFile(*file, bytes, true);
    if (!mapping.ok()) return mapping.status();
    madvise(mapping->data(), bytes, MADV_HUGEPAGE);  // best effort
    PrepareToWrite(mapping->data(), bytes, pool);
    if (Status filled = fill(mapping->data() + kHeaderBytes); !filled.ok()) return filled;
    Header header{};
    std::memcpy(header.magic, kMagic, sizeof(kMagic));
    std::memcpy(header.key, key.data(), sizeof(header.key));
    header.payload_bytes = payload_bytes;
    header.checksum = ChecksumOf(mapping->data() + kHeaderBytes, payload_bytes, pool);
    header.own_checksum = HeaderChecksum(header);
    if (Status synced = Sync(*file, *mapping); !synced.ok()) return synced;
    std::memcpy(mapping->data(), &header, sizeof(header));
    if (Status synced = Sync(*file, *mapping); !synced.ok()) return synced;
    mprotect(mapping->data(), bytes, PROT_READ);
    if (Status named = Name(); !named.ok()) return named;
    // What was just summed up need not be read again to be believed.
    const Result<FileIdentity> identity = file->Identity();
    if (identity.ok()) RememberWhole(path_, StateOf(identity.value(), header));
    return std::move(mapping.value());
  }

 private:
  Status Sync(const File& file, const Mapping& mapping) const {
    if (msync(mapping.data(), mapping.size(), MS_SYNC) == 0) return file.Sync();
    return Status(Code::kIo, aside_ + " cannot be synced: " + std::strerror(errno));
  }
  Status Name() const {
    if (rename(aside_.c_str(), path_.c_str()) != 0) return Status(Code::kIo, path_ + " cannot be renamed: " + std::strerror(errno));
    return SyncFolder(std::filesystem::path(path_).parent_path());
  }

  const std::string path_;
  const std::string aside_;
};

}  // namespace

size_t PackPlan::AddPieces(size_t bytes, int pieces, FillPiece fill) {
  const size_t offset = bytes_;
  parts_.push_back({offset, pieces, std::move(fill)});
  bytes_ += (bytes + 63) / 64 * 64;
  return offset;
}

Status PackPlan::FillAll(std::byte* base, ThreadPool* pool) const {
  std::vector<std::pair<const Part*, int>> pieces;
  for (const Part& part : parts_) {
    for (int piece = 0; piece < part.pieces; ++piece) pieces.emplace_back(&part, piece);
  }
  std::vector<Status> results(pieces.size());
  pool->Run(static_cast<int>(pieces.size()), [&](int item, int) {
    const auto& [part, piece] = pieces[static_cast<size_t>(item)];
    results[static_cast<size_t>(item)] = part->fill(base + part->offset, piece);
  });
  for (const Status& result : results) {
    if (!result.ok()) return result;
  }
  return Status::Ok();
}

Result<PackedWeights> PackedWeights::Materialise(const PackPlan& plan, const std::string& folder, const std::string& key,
                                                 ThreadPool* pool) {
  const auto fill = [&](std::byte* base) { return plan.FillAll(base, pool); };
  PackedWeights packed;
  packed.bytes_ = plan.bytes();
  if (folder.empty()) {
    Result<Mapping> memory = Mapping::Anonymous(plan.bytes());
    if (!memory.ok()) return memory.status();
    madvise(memory->data(), plan.bytes(), MADV_HUGEPAGE);  // best effort
    PrepareToWrite(memory->data(), plan.bytes(), pool);
    if (Status filled = fill(memory->data()); !filled.ok()) return filled;
    mprotect(memory->data(), plan.bytes(), PROT_READ);
    packed.mapping_ = std::move(memory.value());
    packed.base_ = packed.mapping_.data();
    return packed;
  }
  if (Status made = MakeFolder(folder); !made.ok()) return made;
  const std::string path = folder + "/" + key + ".weights";
  packed.mapping_ = OpenWhole(path, key, plan.bytes(), pool);
  packed.hit_ = packed.mapping_.data() != nullptr;
  if (!packed.hit_) {
    const FileLock lock(folder + "/" + key + ".lock");
    packed.mapping_ = OpenWhole(path, key, plan.bytes(), pool);
    packed.hit_ = packed.mapping_.data() != nullptr;
    if (!packed.hit_) {
      if (lock.held()) RemoveLeftovers(folder, key);
      NewFile file(path, path + "." + std::to_string(gettid()) + ".tmp");
      Result<Mapping> made = file.Make(key, plan.bytes(), pool, fill);
      if (!made.ok()) return made.status();
      packed.mapping_ = std::move(made.value());
    }
  }
  packed.base_ = packed.mapping_.data() + kHeaderBytes;
  return packed;
}

}  // namespace margay
