#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

namespace margay {
namespace {

Status IoError(const std::string& path, const char* verb, int error) {
  return Status(Code::kIo, path + " cannot be " + verb + ": " + std::strerror(error));
}

}  // namespace

Result<File> File::Open(const std::string& path) {
  // A pipe without a writer must not hold anybody up; it reads as empty.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return IoError(path, "opened", errno);
  return File(fd, path);
}

Result<File> File::Create(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return IoError(path, "created", errno);
  return File(fd, path);
}

File::File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}

File::~File() {
  if (fd_ >= 0) close(fd_);
}

Status File::Failure(const char* verb) const { return IoError(path_, verb, errno); }

Result<FileIdentity> File::Identity() const {
  struct stat facts {};
  if (fstat(fd_, &facts) != 0) return Failure("examined");
  const auto nanoseconds = [](const timespec& time) { return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; };
  return FileIdentity{static_cast<uint64_t>(facts.st_size), static_cast<uint64_t>(facts.st_ino),
                      static_cast<uint64_t>(facts.st_dev), nanoseconds(facts.st_mtim), nanoseconds(facts.st_ctim)};
}

Status File::ReadAt(uint64_t offset, void* out, size_t bytes) const {
  auto* at = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t got = pread(fd_, at, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Failure("read");
    if (got == 0) return Status(Code::kIo, path_ + " ends too early");
    at += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<size_t>(got);
  }
  return Status::Ok();
}

Status File::WriteAll(std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t put = write(fd_, bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return Failure("written");
    bytes.remove_prefix(static_cast<size_t>(put));
  }
  return Status::Ok();
}

Status File::Sync() const { return fsync(fd_) == 0 ? Status::Ok() : Failure("synced"); }

Result<Mapping> Mapping::Anonymous(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return Status(Code::kIo, "no memory for " + std::to_string(bytes) + " bytes of weights");
  return Mapping(static_cast<std::byte*>(data), bytes);
}

Result<Mapping> Mapping::OfFile(const File& file, size_t bytes, bool writable) {
  void* data = mmap(nullptr, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file.fd(), 0);
  if (data == MAP_FAILED) return IoError(file.path(), "mapped", errno);
  return Mapping(static_cast<std::byte*>(data), bytes);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

void TouchPages(std::span<const std::byte> range) {
  constexpr uintptr_t kPage = 4096;
  const auto first = reinterpret_cast<uintptr_t>(range.data()) / kPage * kPage;
  const auto end = reinterpret_cast<uintptr_t>(range.data() + range.size());
#if defined(MADV_POPULATE_READ)
  if (madvise(reinterpret_cast<void*>(first), end - first, MADV_POPULATE_READ) == 0) return;
#endif
  for (uintptr_t page = first; page < end; page += kPage) (void)*reinterpret_cast<const volatile std::byte*>(std::max(page, reinterpret_cast<uintptr_t>(range.data())));
}

Result<std::string> ReadText(const std::string& path, size_t limit) {
  Result<File> file = File::Open(path);
  if (!file.ok()) return file.status();
  const Result<FileIdentity> identity = file->Identity();
  if (!identity.ok()) return identity.status();
  if (identity.value().size > limit) {
    return Status(Code::kIo, path + " is larger than " + std::to_string(limit) + " bytes");
  }
  std::string text(identity.value().size, '\0');
  if (Status read = file->ReadAt(0, text.data(), text.size()); !read.ok()) return read;
  return text;
}

Status WriteTextAtomically(const std::string& path, std::string_view text) {
  // Named after the thread: two engines of one process may load the same checkpoint at once.
  const std::string aside = path + "." + std::to_string(gettid()) + ".tmp";
  unlink(aside.c_str());
  Result<File> file = File::Create(aside);
  if (!file.ok()) return file.status();
  Status done = file->WriteAll(text);
  if (done.ok()) done = file->Sync();
  if (done.ok() && rename(aside.c_str(), path.c_str()) != 0) done = IoError(path, "renamed", errno);
  if (!done.ok()) unlink(aside.c_str());
  return done;
}

Status MakeFolder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return Status(Code::kIo, "the folder " + path + " cannot be made: " + error.message());
  return Status::Ok();
}

Status SyncFolder(const std::string& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return IoError(folder, "opened", errno);
  const int synced = fsync(fd);
  const int error = errno;
  close(fd);
  return synced == 0 ? Status::Ok() : IoError(folder, "synced", error);
}

bool FileExists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

}  // namespace margay
