// A peer of the KV protocol that says whatever a test wants, and waits for it with patience.
#pragma once

#include <cerrno>
#include <functional>
#include <optional>
#include <vector>

#include "kv_sides.h"
#include "core/checksum.h"
#include "transport/frame.h"
#include "core/socket.h"

namespace margay {

class RawPeer {
 public:
  explicit RawPeer(Fd fd) : fd_(std::move(fd)) {}
  static RawPeer Tcp(int port) { return RawPeer(Connect(*TcpAddress("127.0.0.1", port))); }
  static RawPeer Unix(int port) { return RawPeer(Connect(UnixBeside(port))); }

  const Fd& fd() const { return fd_; }
  // False when the other side has closed (its answer tells why) or takes no more.
  bool Send(const void* bytes, size_t count) {
    return Move(POLLOUT, count, [&](size_t from) {
      return send(fd_.get(), static_cast<const char*>(bytes) + from, count - from, MSG_NOSIGNAL | MSG_DONTWAIT);
    });
  }
  bool Send(FrameHead head) {
    head.Seal();
    return Send(&head, sizeof head);
  }
  void Send(FrameHead head, const std::vector<std::byte>& payload) {
    Send(head);
    Send(payload.data(), payload.size());
  }
  bool Read(void* bytes, size_t count) {
    return Move(POLLIN, count,
                [&](size_t from) { return recv(fd_.get(), static_cast<char*>(bytes) + from, count - from, MSG_DONTWAIT); });
  }
  std::optional<FrameHead> Answer() {
    FrameHead head;
    if (!Read(&head, sizeof head) || head.Fault()) return std::nullopt;
    return head;
  }
  // "ack", "welcome", the cause of a refusal, or "closed".
  std::string Heard() {
    const auto head = Answer();
    if (!head) return "closed";
    if (head->type == FrameType::kRefuse) return FrameRefusalName(static_cast<FrameRefusal>(head->cause));
    return head->type == FrameType::kAck ? "ack" : head->type == FrameType::kWelcome ? "welcome" : "something else";
  }

  static FrameHead Hello(const std::string& text, uint32_t bytes) {
    FrameHead head;
    head.type = FrameType::kHello;
    head.payload_bytes = bytes;
    head.payload_checksum = Checksum(text.data(), text.size());
    return head;
  }
  void Greet(const std::string& text = HelloText(kTestLayout, kTestModel)) {
    Send(Hello(text, static_cast<uint32_t>(text.size())));
    Send(text.data(), text.size());
  }
  void GreetWithPool(int memory_fd) {
    const std::string text = HelloText(kTestLayout, kTestModel);
    FrameHead head = Hello(text, static_cast<uint32_t>(text.size()));
    head.Seal();
    if (SendWithFd(fd_, std::as_bytes(std::span(&head, 1)), memory_fd) != sizeof head) std::abort();
    Send(text.data(), text.size());
  }

 private:
  // Until `count` bytes have moved; false when none did for kPatienceMs, or none ever will.
  bool Move(short event, size_t count, const std::function<ssize_t(size_t)>& some) {
    constexpr int kSliceMs = 100;
    size_t moved = 0;
    for (int waited = 0; moved < count && waited < kPatienceMs;) {
      const ssize_t now = some(moved);
      if (now > 0) {
        moved += static_cast<size_t>(now);
        waited = 0;
        continue;
      }
      if (now == 0 || (errno != EAGAIN && errno != EINTR)) return false;
      pollfd polled{fd_.get(), event, 0};
      poll(&polled, 1, kSliceMs);
      waited += kSliceMs;
    }
    return moved == count;
  }
  static Fd Connect(const Address& address) {
    Fd fd(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.bytes) != 0) std::abort();
    return fd;
  }

  Fd fd_;
};

// A good page of a sequence of kTestLayout, to be spoiled.
inline FrameHead PageOf(SequenceRef sequence, int attention, int block, int rows,
                        const std::vector<std::byte>& payload) {
  FrameHead head;
  head.type = FrameType::kPage;
  head.ticket = 7;
  head.epoch = kTestEpoch;
  head.sequence = sequence;
  head.attention = attention;
  head.block = block;
  head.rows = rows;
  head.payload_bytes = static_cast<uint32_t>(payload.size());
  head.payload_checksum = Checksum(payload.data(), payload.size());
  return head;
}

inline std::vector<std::byte> PayloadOf(int rows, int salt) {
  std::vector<std::byte> bytes(static_cast<size_t>(rows) * kTestLayout.row_bytes());
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>((i * 31 + static_cast<size_t>(salt)) & 0xff);
  return bytes;
}

}  // namespace margay
