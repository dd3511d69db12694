// A TCP endpoint that passes connections, one after the other, on to another port of this host as a slower link would (core/link_model.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "core/socket.h"

namespace margay::bench {

struct LinkRate {
  double bytes_per_s = 0;
  int64_t latency_ns = 0;
};

// Owns the listener, both sockets and the bytes on their way, and a thread that does nothing else. What flows back
// (answers) is passed on at once.
class LinkRelay {
 public:
  LinkRelay(int to_port, const LinkRate& rate);
  ~LinkRelay();
  int port() const { return PortOf(listener_); }

 private:
  class Thread;
  const Fd listener_;
  Doorbell bell_;
  std::unique_ptr<Thread> thread_;
};

}  // namespace margay::bench
