// How the members of a group find each other: connects to those with a lower index, hears those with a higher one.
//
//   away (retry_at) -> connecting -> greeting -> met
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/mailbox.h"
#include "comm/reception.h"
#include "core/sealed_memory.h"

namespace margay {

// A member that is connected; with its outbox, where memory is shared.
struct Met {
  Fd fd;
  std::optional<SealedMemory> outbox;
};

bool SharesMemory(const GroupSpec& spec, int peer);

class Meeting {
 public:
  // `outbox_fd`: of the own outbox, to be passed to those who share memory.
  Meeting(const GroupSpec& spec, const MailboxLayout& layout, const GreetingRules& rules, Door* door, int outbox_fd);

  // Returns when all are met; kGroupLost names who did not come, or who refused and why.
  Status Run();
  std::vector<Met> Take() { return std::move(met_); }

 private:
  static constexpr int64_t kAttemptMs = 2'000;
  static constexpr int64_t kPauseMs = 30;

  enum class State : uint8_t { kAway, kConnecting, kGreeting, kMet };
  struct Attempt {
    State state = State::kAway;
    Fd fd;
    int64_t at_ms = 0;  // of the next attempt, or the end of this one
    Greeting answer;
    size_t have = 0;
    Fd memory;
  };

  bool Connects(int peer) const { return peer < spec_.self; }
  void Start(int peer, int64_t now_ms);
  void Advance(int peer, short revents, int64_t now_ms);
  void Greet(int peer, int64_t now_ms);
  void Hear(int peer, int64_t now_ms);
  void Retry(int peer, int64_t now_ms);
  void Fail(int peer, const std::string& why);
  bool SendGreeting(const Fd& fd, GreetingType type, int peer) const;
  std::optional<GreetingRefusal> Receive(Reception::Guest* guest);
  bool Keep(int peer, Fd fd, Fd memory);
  Status MissingMembers() const;

  const GroupSpec& spec_;
  const MailboxLayout& layout_;
  const GreetingRules& rules_;
  Door* const door_;
  const int outbox_fd_;
  Reception reception_;
  std::vector<Attempt> attempts_;  // [members]
  std::vector<Met> met_;           // [members]
  std::string failure_;
};

}  // namespace margay
