#include "frame/link_relay.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <thread>
#include <vector>

#include "core/link_model.h"

namespace margay::bench {
namespace {

constexpr size_t kPieceBytes = 4096;  // arrive together

int64_t SteadyNs() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }

Fd ListenHere() {
  Result<Fd> listener = Listen(*TcpAddress("127.0.0.1", 0));
  if (!listener.ok()) std::abort();
  return std::move(*listener);
}

}  // namespace

class LinkRelay::Thread {
 public:
  Thread(const Fd& listener, int bell, int to_port, const LinkRate& rate)
      : listener_(listener), bell_(bell), to_port_(to_port), link_(rate.bytes_per_s, rate.latency_ns), thread_([this] { Run(); }) {}
  ~Thread() { thread_.join(); }

 private:
  struct Piece {
    int64_t arrives_ns = 0;
    std::vector<std::byte> bytes;
    size_t passed = 0;
  };

  void Run() {
    while (Connect() && Relay()) {
    }
  }

  // A sender that was held up for long may have given up its connection and made another. This and what follows: false when
  // the relay is to end.
  bool Connect() {
    on_the_way_.clear();
    while (!(from_ = Accept(listener_))) {
      if (!Wait({{listener_.get(), POLLIN, 0}}, -1)) return false;
    }
    Result<Fd> to = StartConnect(*TcpAddress("127.0.0.1", to_port_));
    if (!to.ok()) return false;
    to_ = std::move(*to);
    return true;
  }

  bool Relay() {
    while (Take() && Pass() && Return()) {
      const bool arrived = !on_the_way_.empty() && on_the_way_.front().arrives_ns <= SteadyNs();
      const int64_t next = on_the_way_.empty() || arrived ? -1 : on_the_way_.front().arrives_ns;
      if (!Wait({{from_.get(), POLLIN, 0}, {to_.get(), static_cast<short>(POLLIN | (arrived ? POLLOUT : 0)), 0}}, next)) return false;
    }
    from_ = {};
    to_ = {};
    return true;
  }

  bool Wait(std::vector<pollfd> fds, int64_t until_ns) const {
    fds.push_back({bell_, POLLIN, 0});
    const int64_t rest = std::max<int64_t>(until_ns - SteadyNs(), 0);
    const timespec limit{rest / 1'000'000'000, rest % 1'000'000'000};
    ppoll(fds.data(), fds.size(), until_ns < 0 ? nullptr : &limit, nullptr);
    return fds.back().revents == 0;
  }

  // What the sender handed over. False at the connection's end, as in what follows.
  bool Take() {
    for (;;) {
      const ssize_t got = Receive(from_, piece_);
      if (got <= 0) return got == 0;
      const int64_t arrives_ns = link_.Carry(SteadyNs(), static_cast<size_t>(got));
      on_the_way_.push_back({arrives_ns, {piece_.begin(), piece_.begin() + got}});
    }
  }

  // What has arrived, to the receiver.
  bool Pass() {
    while (!on_the_way_.empty() && on_the_way_.front().arrives_ns <= SteadyNs()) {
      Piece& piece = on_the_way_.front();
      const ssize_t moved = Send(to_, std::span(piece.bytes).subspan(piece.passed));
      if (moved <= 0) return moved == 0;
      piece.passed += static_cast<size_t>(moved);
      if (piece.passed == piece.bytes.size()) on_the_way_.pop_front();
    }
    return true;
  }

  bool Return() {
    for (;;) {
      const ssize_t got = Receive(to_, piece_);
      if (got <= 0) return got == 0;
      // Answers are few: an empty socket takes them.
      if (Send(from_, std::span(piece_).first(static_cast<size_t>(got))) != got) return false;
    }
  }

  const Fd& listener_;
  const int bell_;
  const int to_port_;
  LinkModel link_;
  Fd from_, to_;
  std::deque<Piece> on_the_way_;
  std::array<std::byte, kPieceBytes> piece_;
  std::thread thread_;
};

LinkRelay::LinkRelay(int to_port, const LinkRate& rate)
    : listener_(ListenHere()), thread_(std::make_unique<Thread>(listener_, bell_.fd(), to_port, rate)) {}

LinkRelay::~LinkRelay() { bell_.Ring(); }

}  // namespace margay::bench
