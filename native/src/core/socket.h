// Sockets without blocking: every call returns at once, waiting is the caller's poll().
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "core/status.h"

namespace margay {

// Owns a descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.Release()) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) Reset(other.Release());
    return *this;
  }
  ~Fd() { Reset(); }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }
  void Reset(int fd = -1);

 private:
  int fd_ = -1;
};

struct Address {
  sockaddr_storage storage{};
  socklen_t bytes = 0;
  int family() const { return storage.ss_family; }
};

// Numeric hosts and "localhost": nothing is asked of the network.
Result<Address> TcpAddress(const std::string& host, int port);
// The Unix socket beside a TCP endpoint, in the abstract namespace: it ends with its process.
Address UnixBeside(int tcp_port);

Result<Fd> Listen(const Address& address);
int PortOf(const Fd& listener);
// Empty when nobody waits or the connection was lost meanwhile.
Fd Accept(const Fd& listener);
// Begins to connect; writable means decided, see ConnectError.
Result<Fd> StartConnect(const Address& address);
int ConnectError(const Fd& fd);
// True when the other end of a Unix socket runs as this user.
bool SameUser(const Fd& fd);

// Bytes moved; 0: not now; -1: the connection is over.
ssize_t Send(const Fd& fd, std::span<const std::byte> first, std::span<const std::byte> second = {});
ssize_t Receive(const Fd& fd, std::span<std::byte> first, std::span<std::byte> second = {});
// As many of the pieces as may be given at once, in order; none of them empty.
ssize_t SendPieces(const Fd& fd, std::span<const iovec> pieces);
ssize_t ReceivePieces(const Fd& fd, std::span<const iovec> pieces);
// The first byte carries a descriptor; receivers of anything else pass `received` and get what came, or leave it empty.
ssize_t SendWithFd(const Fd& fd, std::span<const std::byte> bytes, int passed);
ssize_t ReceiveWithFd(const Fd& fd, std::span<std::byte> into, Fd* received);

// A thread's doorbell: Ring makes poll() return until Hush.
class Doorbell {
 public:
  Doorbell();
  int fd() const { return fd_.get(); }
  void Ring();
  void Hush();

 private:
  Fd fd_;
};

int64_t NowMs();  // CLOCK_REALTIME, as deadlines are told
// poll() with an absolute limit, -1: none.
void PollUntil(std::span<pollfd> fds, int64_t until_ms);

}  // namespace margay
