// The way to one peer over a socket. Between hosts it carries what the outbox holds for the peer and keeps a copy of what
// the peer's holds for this rank; beside shared memory it only wakes a peer that rests, and tells of its end.
//
// S1 frames are sent from the outbox itself: a place is written again only after the peer has had all of it (mailbox.h, M1)
// S2 what arrives is written into the copy of the sender's outbox and nowhere else, its words last, and only what a
//    member in step could have sent
// Sending is any thread's, one at a time; receiving is the progress thread's.
#pragma once

#include <sys/uio.h>

#include <array>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "comm/lane.h"
#include "comm/wire.h"
#include "core/socket.h"

namespace margay {

class SocketLane : public Lane {
 public:
  struct Sides {
    const GroupSpec* spec;
    const MailboxLayout* layout;
    Mailbox own;
    Mailbox theirs;
    bool carries;  // all frames, not only those beside shared memory
  };
  // `more_to_send` rings the progress thread.
  SocketLane(int peer, Fd fd, const Sides& sides, std::function<void()> more_to_send);

  void Began() override;
  void Dispatched(uint32_t number) override;
  void Combined(uint32_t number) override;
  void WaitsLong() override;
  void Left() override;
  void Ring() override;

  // Of the progress thread.
  int fd() const { return fd_.get(); }
  bool over() const { return over_; }
  short Events();
  // Sends and receives what can be now. Why the peer is lost, if it is; `news`: it began a step or left.
  std::optional<LossCause> Serve(short revents, bool* news);
  // Nothing is received any more.
  bool Sent();
  void Shut();
  void Discard();

 private:
  static constexpr size_t kMostQueued = 8;   // a rank in step never has more
  static constexpr size_t kMostAtOnce = 256 << 10;  // bytes moved by one call
  static constexpr size_t kInline = 64 << 10;       // sent by the engine thread itself

  struct Outgoing {
    ExchangeFrame frame;
    std::vector<iovec> pieces;
  };

  void Post(ExchangeFrame frame, const std::function<void(std::vector<iovec>*)>& body = {});
  void Flush();

  bool Receive(bool* news);
  bool OnFrame();
  bool OnList();
  bool OnWhole(bool* news);
  bool Fault(LossCause cause);

  const int peer_;
  const Sides sides_;
  const std::function<void()> more_to_send_;
  Fd fd_;

  std::mutex send_mutex_;
  std::array<Outgoing, kMostQueued> queue_;
  size_t first_ = 0, queued_ = 0;
  size_t piece_ = 0;  // of the first
  bool send_failed_ = false;

  bool over_ = false;
  std::optional<LossCause> fault_;
  enum class Reading : uint8_t { kFrame, kList, kRows } reading_ = Reading::kFrame;
  ExchangeFrame in_;
  std::vector<iovec> missing_;  // what the bytes to come belong to
  size_t next_ = 0;
};

}  // namespace margay
