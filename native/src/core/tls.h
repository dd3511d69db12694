// TLS with certificates on both sides, over a socket without blocking. The library is the OpenSSL that Node has in it
// and shows to addons, or the system's: nothing of it is needed to build.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "core/socket.h"
#include "core/status.h"

namespace margay {

// PEM files. Both sides show a certificate, and each must be of the authority: names are not looked at, so the
// authority should be of those alone that may talk to each other.
struct TlsFiles {
  std::string certificate;  // with those between it and the authority
  std::string key;
  std::string authority;
  bool given() const { return !certificate.empty(); }
};

enum class TlsSide : uint8_t { kConnects, kAccepts };

// One connection. TLS 1.3 alone; the handshake goes on with whatever is sent or received first.
class TlsSession {
 public:
  // Reads the files, so that a certificate that was replaced holds for the next connection.
  static Result<std::unique_ptr<TlsSession>> Open(const Fd& fd, const TlsFiles& files, TlsSide side);
  ~TlsSession();

  // As Send and Receive of a socket.
  ssize_t Send(std::span<const std::byte> first, std::span<const std::byte> second);
  ssize_t Receive(std::span<std::byte> first, std::span<std::byte> second);
  // What poll() is asked for, by whether something is to be received and to be sent: a handshake may turn both around.
  short Events(bool to_receive, bool to_send) const;

 private:
  TlsSession(void* context, void* session) : context_(context), session_(session) {}
  ssize_t Moved(int result, short* waits_for);

  void* const context_;
  void* const session_;
  short sending_waits_for_ = 0;
  short receiving_waits_for_ = 0;
};

// Empty, or why no connection can be made with these files.
Status CheckTls(const TlsFiles& files);

// A thread that writes to such connections calls this once: the library cannot ask the kernel for an error instead.
void BlockBrokenPipeSignal();

// A connection, with TLS or without.
class Channel {
 public:
  Channel() = default;
  explicit Channel(Fd fd) : fd_(std::move(fd)) {}
  static Result<Channel> Secure(Fd fd, const TlsFiles& files, TlsSide side);

  const Fd& fd() const { return fd_; }
  bool secure() const { return tls_ != nullptr; }
  // What poll() is asked for, by whether something is to be received and to be sent.
  short Events(bool to_receive, bool to_send) const;
  // As Send and Receive of a socket.
  ssize_t Send(std::span<const std::byte> first, std::span<const std::byte> second = {});
  ssize_t Receive(std::span<std::byte> first, std::span<std::byte> second = {});

 private:
  Fd fd_;
  std::unique_ptr<TlsSession> tls_;  // before the socket goes
};

}  // namespace margay
