#include "comm/reception.h"

#include <algorithm>

namespace margay {

void Door::Count(GreetingRefusal cause) {
  const std::lock_guard lock(mutex);
  ++refused[static_cast<size_t>(cause)];
}

int ReadGreeting(const Fd& fd, bool local, Greeting* greeting, size_t* have, Fd* memory) {
  const std::span<std::byte> rest = std::as_writable_bytes(std::span(greeting, 1)).subspan(*have);
  const ssize_t got = local ? ReceiveWithFd(fd, rest, memory) : Receive(fd, rest);
  if (got < 0) return -1;
  *have += static_cast<size_t>(got);
  return *have == sizeof(Greeting) ? 1 : 0;
}

void Reception::AddPolled(std::vector<pollfd>* polled) const {
  const short more = guests_.size() < kMostGuests ? POLLIN : 0;
  polled->push_back({door_->tcp.get(), more, 0});
  polled->push_back({door_->local.get(), more, 0});
  for (const Guest& guest : guests_) polled->push_back({guest.fd.get(), POLLIN, 0});
}

int64_t Reception::NextDeadline() const { return guests_.empty() ? -1 : guests_.front().until_ms; }

void Reception::Accept(const Fd& listener, bool local, int64_t now_ms) {
  while (guests_.size() < kMostGuests) {
    Guest guest;
    guest.fd = margay::Accept(listener);
    if (!guest.fd) return;
    if (local && !SameUser(guest.fd)) continue;
    guest.local = local;
    guest.until_ms = now_ms + kPatienceMs;
    guests_.push_back(std::move(guest));
  }
}

void Reception::Serve(std::span<const pollfd> polled, int64_t now_ms, const Take& take) {
  const size_t known = std::min(guests_.size(), polled.size() - 2);
  std::deque<Guest> staying;
  for (size_t i = 0; i < known; ++i) {
    Guest& guest = guests_[i];
    if (polled[i + 2].revents != 0 && !Hear(&guest, take)) continue;
    if (now_ms < guest.until_ms) {
      staying.push_back(std::move(guest));
    } else {
      door_->Count(GreetingRefusal::kMalformed);
    }
  }
  guests_ = std::move(staying);
  if (polled[0].revents != 0) Accept(door_->tcp, false, now_ms);
  if (polled[1].revents != 0) Accept(door_->local, true, now_ms);
}

bool Reception::Hear(Guest* guest, const Take& take) {
  const int heard = ReadGreeting(guest->fd, guest->local, &guest->greeting, &guest->have, &guest->memory);
  if (heard == 0) return true;
  if (heard < 0) {
    if (guest->have > 0) door_->Count(GreetingRefusal::kMalformed);
    return false;
  }
  std::optional<GreetingRefusal> fault = rules_->Fault(guest->greeting, GreetingType::kHello);
  if (!fault) fault = take(guest);
  if (fault) Refuse(*guest, *fault);
  return false;
}

void Reception::Refuse(const Guest& guest, GreetingRefusal cause) {
  door_->Count(cause);
  const Greeting no = rules_->Refuse(cause);
  (void)Send(guest.fd, std::as_bytes(std::span(&no, 1)));  // it may be gone
}

}  // namespace margay
