// The way between this rank and one peer. Over memory that both see, what is in an outbox is there for the peer at once;
// over a network a lane carries it and keeps a copy of the peer's outbox here, of which it raises the words last.
#pragma once

#include "comm/mailbox.h"

namespace margay {

class Lane {
 public:
  explicit Lane(Mailbox theirs) : theirs_(theirs) {}
  virtual ~Lane() = default;
  // The peer's outbox.
  const Mailbox& theirs() const { return theirs_; }

  // The own outbox has something new for the peer; from the engine thread.
  virtual void Began() {}
  virtual void Dispatched(uint32_t /*number*/) {}
  virtual void Combined(uint32_t /*number*/) {}
  // Some time into a long wait, so that the peer can tell who is late.
  virtual void WaitsLong() {}
  // Any thread.
  virtual void Left() {}
  // The peer sleeps between steps and one has begun.
  virtual void Ring() = 0;

 private:
  const Mailbox theirs_;
};

}  // namespace margay
