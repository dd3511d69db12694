#include "core/socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <chrono>
#include <cstddef>
#include <cstring>

namespace margay {
namespace {

Status IoError(const std::string& what) { return {Code::kIo, what + ": " + std::strerror(errno)}; }

void SetOption(const Fd& fd, int level, int option, int value) {
  setsockopt(fd.get(), level, option, &value, sizeof value);  // best effort: none of them is needed for correctness
}

// A peer whose host vanished is noticed after about a minute.
void TuneTcp(const Fd& fd) {
  SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  SetOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, 30);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

ssize_t Moved(ssize_t result) {
  if (result >= 0) return result;
  return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -1;
}

iovec Piece(std::span<const std::byte> bytes) { return {const_cast<std::byte*>(bytes.data()), bytes.size()}; }

}  // namespace

void Fd::Reset(int fd) {
  if (fd_ >= 0) close(fd_);
  fd_ = fd;
}

Result<Address> TcpAddress(const std::string& host, int port) {
  if (port < 0 || port > 65535) return Status(Code::kBadArgument, "port out of range: " + std::to_string(port));
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const std::string numeric = host == "localhost" ? "127.0.0.1" : host;
  if (getaddrinfo(numeric.c_str(), std::to_string(port).c_str(), &hints, &found) != 0 || found == nullptr) {
    return Status(Code::kBadArgument, "host must be an IP address or localhost: " + host);
  }
  Address address;
  address.bytes = found->ai_addrlen;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  freeaddrinfo(found);
  return address;
}

Address UnixBeside(int tcp_port) {
  Address address;
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  const std::string text = "margay-" + std::to_string(tcp_port);
  std::copy(text.begin(), text.end(), name.sun_path + 1);  // a leading zero byte: abstract
  address.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
  std::memcpy(&address.storage, &name, sizeof name);
  return address;
}

Result<Fd> Listen(const Address& address) {
  Fd fd(socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return IoError("opening a socket");
  if (address.family() != AF_UNIX) SetOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.bytes) != 0 ||
      listen(fd.get(), 64) != 0) {
    return IoError("listening");
  }
  return fd;
}

int PortOf(const Fd& listener) {
  Address address;
  address.bytes = sizeof address.storage;
  if (getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address.storage), &address.bytes) != 0) return 0;
  if (address.family() == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6*>(&address.storage)->sin6_port);
  return ntohs(reinterpret_cast<const sockaddr_in*>(&address.storage)->sin_port);
}

Fd Accept(const Fd& listener) {
  Fd fd(accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (fd) TuneTcp(fd);
  return fd;
}

Result<Fd> StartConnect(const Address& address) {
  Fd fd(socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return IoError("opening a socket");
  if (address.family() != AF_UNIX) TuneTcp(fd);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.bytes) != 0 &&
      errno != EINPROGRESS) {
    return IoError("connecting");
  }
  return fd;
}

int ConnectError(const Fd& fd) {
  int error = 0;
  socklen_t bytes = sizeof error;
  return getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &bytes) == 0 ? error : errno;
}

bool SameUser(const Fd& fd) {
  ucred peer{};
  socklen_t bytes = sizeof peer;
  return getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.uid == geteuid();
}

ssize_t Send(const Fd& fd, std::span<const std::byte> first, std::span<const std::byte> second) {
  std::array<iovec, 2> pieces = {Piece(first), Piece(second)};
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = second.empty() ? 1 : 2;
  return Moved(sendmsg(fd.get(), &message, MSG_NOSIGNAL));
}

ssize_t Receive(const Fd& fd, std::span<std::byte> first, std::span<std::byte> second) {
  std::array<iovec, 2> pieces = {Piece(first), Piece(second)};
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = second.empty() ? 1 : 2;
  const ssize_t got = recvmsg(fd.get(), &message, 0);
  return got == 0 ? -1 : Moved(got);
}

ssize_t SendPieces(const Fd& fd, std::span<const iovec> pieces) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(pieces.data());
  message.msg_iovlen = std::min<size_t>(pieces.size(), IOV_MAX);
  return Moved(sendmsg(fd.get(), &message, MSG_NOSIGNAL));
}

ssize_t ReceivePieces(const Fd& fd, std::span<const iovec> pieces) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(pieces.data());
  message.msg_iovlen = std::min<size_t>(pieces.size(), IOV_MAX);
  const ssize_t got = recvmsg(fd.get(), &message, 0);
  return got == 0 ? -1 : Moved(got);
}

ssize_t SendWithFd(const Fd& fd, std::span<const std::byte> bytes, int passed) {
  iovec piece = Piece(bytes);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(head), &passed, sizeof passed);
  return Moved(sendmsg(fd.get(), &message, MSG_NOSIGNAL));
}

ssize_t ReceiveWithFd(const Fd& fd, std::span<std::byte> into, Fd* received) {
  iovec piece{into.data(), into.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = CMSG_LEN(sizeof(int));  // no padding that would hold a second descriptor
  const ssize_t got = recvmsg(fd.get(), &message, MSG_CMSG_CLOEXEC);
  // The kernel closes descriptors for which there is no room.
  for (cmsghdr* head = got < 0 ? nullptr : CMSG_FIRSTHDR(&message); head != nullptr;
       head = CMSG_NXTHDR(&message, head)) {
    if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS || head->cmsg_len != CMSG_LEN(sizeof(int)))
      continue;
    int passed = -1;
    std::memcpy(&passed, CMSG_DATA(head), sizeof passed);
    received->Reset(passed);
  }
  return got == 0 ? -1 : Moved(got);
}

Doorbell::Doorbell() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

void Doorbell::Ring() { eventfd_write(fd_.get(), 1); }

void Doorbell::Hush() {
  eventfd_t count = 0;
  eventfd_read(fd_.get(), &count);
}

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

void PollUntil(std::span<pollfd> fds, int64_t until_ms) {
  int timeout = -1;
  if (until_ms >= 0) timeout = static_cast<int>(std::clamp<int64_t>(until_ms - NowMs(), 0, 60'000));
  if (poll(fds.data(), fds.size(), timeout) < 0) {
    for (pollfd& fd : fds) fd.revents = 0;  // interrupted: nothing is known
  }
}

}  // namespace margay
