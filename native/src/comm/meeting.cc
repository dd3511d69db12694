#include "comm/meeting.h"

#include <algorithm>

namespace margay {

bool SharesMemory(const GroupSpec& spec, int peer) {
  const std::string& here = spec.members[static_cast<size_t>(spec.self)].host_key;
  return spec.shared_memory && !here.empty() && spec.members[static_cast<size_t>(peer)].host_key == here;
}

Meeting::Meeting(const GroupSpec& spec, const MailboxLayout& layout, const GreetingRules& rules, Door* door, int outbox_fd)
    : spec_(spec), layout_(layout), rules_(rules), door_(door), outbox_fd_(outbox_fd), reception_(door, &rules) {
  attempts_.resize(spec.members.size());
  met_.resize(spec.members.size());
  attempts_[static_cast<size_t>(spec.self)].state = State::kMet;
}

Status Meeting::Run() {
  const int64_t until_ms = NowMs() + spec_.join_deadline_ms;
  std::vector<pollfd> polled;
  while (failure_.empty()) {
    const auto here = [](const Attempt& attempt) { return attempt.state == State::kMet; };
    if (std::all_of(attempts_.begin(), attempts_.end(), here)) return Status::Ok();
    int64_t now_ms = NowMs();
    if (now_ms >= until_ms) return MissingMembers();
    int64_t wake_ms = until_ms;
    polled.assign(1, {door_->stop.fd(), POLLIN, 0});
    for (int peer = 0; peer < spec_.self; ++peer) {
      Attempt& attempt = attempts_[static_cast<size_t>(peer)];
      if (attempt.state == State::kAway && now_ms >= attempt.at_ms) Start(peer, now_ms);
      const bool waits = attempt.state == State::kConnecting || attempt.state == State::kGreeting;
      if (attempt.state != State::kMet) wake_ms = std::min(wake_ms, attempt.at_ms);
      polled.push_back({waits ? attempt.fd.get() : -1, attempt.state == State::kConnecting ? short{POLLOUT} : short{POLLIN}, 0});
    }
    if (!failure_.empty()) break;
    if (const int64_t next = reception_.NextDeadline(); next >= 0) wake_ms = std::min(wake_ms, next);
    reception_.AddPolled(&polled);
    PollUntil(polled, wake_ms);
    now_ms = NowMs();
    if (polled[0].revents != 0) {
      door_->stop.Hush();
      return {Code::kGroupLost, "joining the group of epoch " + std::to_string(spec_.epoch) + " was stopped"};
    }
    for (int peer = 0; peer < spec_.self; ++peer) Advance(peer, polled[static_cast<size_t>(peer) + 1].revents, now_ms);
    reception_.Serve(std::span(polled).subspan(static_cast<size_t>(spec_.self) + 1), now_ms,
                     [this](Reception::Guest* guest) { return Receive(guest); });
  }
  return {Code::kGroupLost, failure_};
}

Status Meeting::MissingMembers() const {
  std::string missing;
  for (size_t peer = 0; peer < attempts_.size(); ++peer) {
    if (attempts_[peer].state != State::kMet) missing += (missing.empty() ? "" : ", ") + std::to_string(peer);
  }
  return {Code::kGroupLost, "joining the group of epoch " + std::to_string(spec_.epoch) + ": not met within " +
                                std::to_string(spec_.join_deadline_ms) + " ms: member " + missing};
}

void Meeting::Fail(int peer, const std::string& why) {
  failure_ = "joining the group of epoch " + std::to_string(spec_.epoch) + ": member " + std::to_string(peer) + ": " + why;
}

void Meeting::Retry(int peer, int64_t now_ms) {
  Attempt& attempt = attempts_[static_cast<size_t>(peer)];
  attempt = {};
  attempt.at_ms = now_ms + kPauseMs;
}

void Meeting::Start(int peer, int64_t now_ms) {
  const GroupMember& member = spec_.members[static_cast<size_t>(peer)];
  Attempt& attempt = attempts_[static_cast<size_t>(peer)];
  Result<Address> address = SharesMemory(spec_, peer) ? Result<Address>(UnixBeside(member.port)) : TcpAddress(member.host, member.port);
  if (!address.ok()) return Fail(peer, address.status().message());
  Result<Fd> fd = StartConnect(*address);
  if (!fd.ok()) return Retry(peer, now_ms);
  attempt.fd = std::move(*fd);
  attempt.state = State::kConnecting;
  attempt.at_ms = now_ms + kAttemptMs;
}

void Meeting::Advance(int peer, short revents, int64_t now_ms) {
  const Attempt& attempt = attempts_[static_cast<size_t>(peer)];
  if (attempt.state == State::kMet || attempt.state == State::kAway) return;
  if (revents != 0) {
    if (attempt.state == State::kConnecting) {
      Greet(peer, now_ms);
    } else {
      Hear(peer, now_ms);
    }
  } else if (now_ms >= attempt.at_ms) {
    Retry(peer, now_ms);
  }
}

bool Meeting::SendGreeting(const Fd& fd, GreetingType type, int peer) const {
  const Greeting greeting = rules_.Make(type, peer);
  const auto bytes = std::as_bytes(std::span(&greeting, 1));
  const ssize_t sent = SharesMemory(spec_, peer) ? SendWithFd(fd, bytes, outbox_fd_) : Send(fd, bytes);
  return sent == sizeof greeting;  // a fresh connection has room for it
}

void Meeting::Greet(int peer, int64_t now_ms) {
  Attempt& attempt = attempts_[static_cast<size_t>(peer)];
  const bool good = ConnectError(attempt.fd) == 0 && (!SharesMemory(spec_, peer) || SameUser(attempt.fd)) &&
                    SendGreeting(attempt.fd, GreetingType::kHello, peer);
  if (!good) return Retry(peer, now_ms);
  attempt.state = State::kGreeting;
}

void Meeting::Hear(int peer, int64_t now_ms) {
  Attempt& attempt = attempts_[static_cast<size_t>(peer)];
  const int heard = ReadGreeting(attempt.fd, SharesMemory(spec_, peer), &attempt.answer, &attempt.have, &attempt.memory);
  if (heard < 0) return Retry(peer, now_ms);
  if (heard == 0) return;
  const Greeting& answer = attempt.answer;
  if (answer.magic == Greeting::kMagic && answer.type == GreetingType::kRefuse && answer.cause < kGreetingRefusals) {
    const auto cause = static_cast<GreetingRefusal>(answer.cause);
    // It is still in an earlier group, or has not noticed yet that an earlier attempt is over.
    if (cause == GreetingRefusal::kEarlyEpoch || cause == GreetingRefusal::kDuplicate) return Retry(peer, now_ms);
    return Fail(peer, std::string("refused this rank: ") + GreetingRefusalName(cause));
  }
  if (const auto fault = rules_.Fault(answer, GreetingType::kWelcome); fault || answer.from != peer) {
    return Fail(peer, std::string("answered wrongly: ") + GreetingRefusalName(fault.value_or(GreetingRefusal::kMalformed)));
  }
  if (!Keep(peer, std::move(attempt.fd), std::move(attempt.memory))) return Fail(peer, "its memory cannot be mapped");
  attempt.state = State::kMet;
}

std::optional<GreetingRefusal> Meeting::Receive(Reception::Guest* guest) {
  const int peer = guest->greeting.from;
  if (Connects(peer) || guest->local != SharesMemory(spec_, peer)) return GreetingRefusal::kMalformed;
  // A member that greets again has given up what it had.
  if (!SendGreeting(guest->fd, GreetingType::kWelcome, peer)) return std::nullopt;
  if (!Keep(peer, std::move(guest->fd), std::move(guest->memory))) return GreetingRefusal::kMalformed;
  attempts_[static_cast<size_t>(peer)].state = State::kMet;
  return std::nullopt;
}

bool Meeting::Keep(int peer, Fd fd, Fd memory) {
  Met& met = met_[static_cast<size_t>(peer)];
  met.outbox.reset();
  met.fd = std::move(fd);
  if (!SharesMemory(spec_, peer)) return true;
  if (!memory) return false;
  Result<SealedMemory> mapped = SealedMemory::Map(std::move(memory));
  if (!mapped.ok() || mapped->bytes() != layout_.bytes()) return false;
  const MailboxHead* head = reinterpret_cast<const MailboxHead*>(mapped->base());
  if (head->magic != MailboxHead::kMagic || head->epoch != spec_.epoch || head->bytes != layout_.bytes()) return false;
  met.outbox = std::move(*mapped);
  return true;
}

}  // namespace margay
