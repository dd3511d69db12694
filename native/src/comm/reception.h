// Takes connections at the endpoint's sockets and hears their greetings. Owns those that have not greeted yet: at most
// kMostGuests, each for kPatienceMs.
#pragma once

#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "comm/wire.h"
#include "core/socket.h"

namespace margay {

// Listening sockets, and what was refused at them.
struct Door {
  Fd tcp;
  Fd local;  // a Unix socket beside
  int port = 0;
  Doorbell stop;
  std::mutex mutex;
  GreetingRefusals refused{};

  void Count(GreetingRefusal cause);
};

class Reception {
 public:
  static constexpr size_t kMostGuests = 64;
  static constexpr int64_t kPatienceMs = 2'000;

  struct Guest {
    Fd fd;
    bool local = false;
    Fd memory;  // that came along
    Greeting greeting;
    size_t have = 0;
    int64_t until_ms = 0;
  };
  // Takes the guest, which greeted well, or says why not.
  using Take = std::function<std::optional<GreetingRefusal>(Guest* guest)>;

  Reception(Door* door, const GreetingRules* rules) : door_(door), rules_(rules) {}

  void AddPolled(std::vector<pollfd>* polled) const;
  // Those that AddPolled added, after poll().
  void Serve(std::span<const pollfd> polled, int64_t now_ms, const Take& take);
  int64_t NextDeadline() const;  // -1: none

 private:
  void Accept(const Fd& listener, bool local, int64_t now_ms);
  // False: the guest is gone.
  bool Hear(Guest* guest, const Take& take);
  void Refuse(const Guest& guest, GreetingRefusal cause);

  Door* const door_;
  const GreetingRules* const rules_;
  std::deque<Guest> guests_;
};

// Reads more of a greeting; 1: whole, 0: not yet, -1: the connection is over.
int ReadGreeting(const Fd& fd, bool local, Greeting* greeting, size_t* have, Fd* memory);

}  // namespace margay
