#include "transport/link.h"

#include <algorithm>
#include <cstring>

#include "core/checksum.h"

namespace margay {
namespace {

// Mapped pages announced by one send: few, so that D copies while the next are looked at.
constexpr size_t kHeadsPerSend = 8;
constexpr int kMostFailures = 6;     // beyond, the pause grows no more

template <typename T>
std::span<const std::byte> BytesOf(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

}  // namespace

short Link::Events() const {
  if (state_ == State::kConnecting) return POLLOUT;
  const bool unsent = out_sent_ < out_.size() || !payload_.empty();
  return channel_.Events(true, unsent);
}

int64_t Link::NextDeadline() const {
  if (state_ == State::kWaiting) return sequences.empty() ? -1 : retry_at_ms_;
  if (state_ != State::kOpen) return deadline_ms_;
  return in_flight_.empty() ? -1 : progress_ms_ + kSilentMs;
}

bool Link::Serve(int64_t now_ms, short revents, std::vector<Answer>* answers) {
  if (state_ == State::kWaiting) return sequences.empty() || now_ms < retry_at_ms_ || Start(now_ms);
  if (state_ != State::kOpen && now_ms >= deadline_ms_) return false;
  if (revents == 0) return !Silent(now_ms);
  if (state_ == State::kConnecting) return ConnectError(channel_.fd()) == 0 ? Greet() : FallBack();
  if (!Flush()) return false;
  const size_t before = answers->size();
  const bool alive = Read(answers);
  if (!alive && incompatible_ && mapped_)
    return FallBack();  // D could not map the pool, or has another model: TCP tells
  if (answers->size() > before) progress_ms_ = now_ms;
  return alive && !Silent(now_ms);
}

bool Link::Start(int64_t now_ms) {
  incompatible_ = false;
  out_.clear();
  out_sent_ = 0;
  in_have_ = 0;
  deadline_ms_ = now_ms + kConnectMs;
  progress_ms_ = now_ms;
  Result<Address> address = mapped_ ? Result<Address>(UnixBeside(port)) : TcpAddress(host, port);
  if (!address.ok()) return false;
  Result<Fd> fd = StartConnect(*address);
  if (!fd.ok()) return FallBack();
  const bool secure = !mapped_ && tls_.given();
  Result<Channel> channel =
      secure ? Channel::Secure(std::move(*fd), tls_, TlsSide::kConnects) : Channel(std::move(*fd));
  if (!channel.ok()) return false;
  channel_ = std::move(*channel);
  state_ = State::kConnecting;
  return true;
}

// Nobody of this user listens for shared memory there: TCP then, for as long as the link lives.
bool Link::FallBack() {
  if (!mapped_) return false;
  mapped_ = false;
  channel_ = {};
  return Start(NowMs());
}

bool Link::Greet() {
  if (mapped_ && !SameUser(channel_.fd())) return FallBack();
  FrameHead head;
  head.type = FrameType::kHello;
  head.payload_bytes = static_cast<uint32_t>(hello_.size());
  head.payload_checksum = Checksum(hello_.data(), hello_.size());
  head.Seal();
  Append(BytesOf(head));
  Append(std::as_bytes(std::span(hello_)));
  state_ = State::kGreeting;
  if (mapped_) {
    const ssize_t sent = SendWithFd(channel_.fd(), out_, pool_->memory_fd());
    if (sent <= 0) return false;  // an empty socket takes a first byte
    out_sent_ = static_cast<size_t>(sent);
  }
  return Flush();
}

void Link::Append(std::span<const std::byte> bytes) { out_.insert(out_.end(), bytes.begin(), bytes.end()); }

bool Link::Flush() {
  while (out_sent_ < out_.size() || !payload_.empty()) {
    const ssize_t moved = channel_.Send(std::span(out_).subspan(out_sent_), payload_);
    if (moved < 0) return false;
    if (moved == 0) return true;
    const size_t of_out = std::min(static_cast<size_t>(moved), out_.size() - out_sent_);
    out_sent_ += of_out;
    payload_ = payload_.subspan(static_cast<size_t>(moved) - of_out);
  }
  out_.clear();
  out_sent_ = 0;
  payload_of_ = nullptr;
  return true;
}

bool Link::Read(std::vector<Answer>* answers) {
  for (;;) {
    const ssize_t got = channel_.Receive(std::span(in_).subspan(in_have_));
    if (got < 0) return false;
    if (got == 0) return true;
    in_have_ += static_cast<size_t>(got);
    size_t at = 0;
    for (; in_have_ - at >= sizeof(FrameHead); at += sizeof(FrameHead)) {
      FrameHead head;
      std::memcpy(&head, in_.data() + at, sizeof head);
      if (head.Fault() || !OnAnswer(head, answers)) return false;
    }
    std::memmove(in_.data(), in_.data() + at, in_have_ - at);
    in_have_ -= at;
  }
}

bool Link::OnAnswer(const FrameHead& head, std::vector<Answer>* answers) {
  const bool refused = head.type == FrameType::kRefuse;
  if (refused && head.cause >= kFrameRefusals) return false;
  const auto cause = static_cast<FrameRefusal>(head.cause);
  if (refused && head.ticket == 0) {
    incompatible_ = state_ == State::kGreeting && cause == FrameRefusal::kIncompatible;
    return false;
  }
  if (state_ == State::kGreeting) {
    if (head.type != FrameType::kWelcome) return false;
    state_ = State::kOpen;
    failures_ = 0;
    return true;
  }
  if (in_flight_.empty() || in_flight_.front().ticket != head.ticket) return false;
  if (!refused && head.type != FrameType::kAck) return false;
  answers->push_back({std::move(in_flight_.front()), refused ? std::optional(cause) : std::nullopt});
  in_flight_.pop_front();
  return true;
}

bool Link::Pump() {
  if (state_ != State::kOpen) return true;
  for (;;) {
    if (!Flush()) return false;
    if (!out_.empty() || !payload_.empty()) return true;
    while (in_flight_.size() < kWindow && payload_.empty() && out_.size() < kHeadsPerSend * sizeof(FrameHead) && FillOne()) {
    }
    if (out_.empty()) return true;
  }
}

// Announces one page of the next sequence that has one.
bool Link::FillOne() {
  for (size_t tried = 0; tried < sequences.size(); ++tried) {
    const std::shared_ptr<Outgoing>& outgoing = sequences[turn_++ % sequences.size()];
    const std::optional<Outgoing::Page> page = outgoing->Next();
    if (!page) continue;
    FrameHead head = outgoing->Describe(*page);
    head.type = mapped_ ? FrameType::kMappedPage : FrameType::kPage;
    head.ticket = next_ticket_++;
    const std::span<const std::byte> rows(pool_->memory().row(page->attention, head.source_block, head.first_row),
                                          head.payload_bytes);
    head.payload_checksum = Checksum(rows.data(), rows.size());
    head.Seal();
    Append(BytesOf(head));
    if (!mapped_) {
      payload_ = rows;
      payload_of_ = outgoing.get();
    }
    if (in_flight_.empty()) progress_ms_ = NowMs();
    in_flight_.push_back({outgoing, *page, head.ticket, head.payload_bytes});
    return true;
  }
  return false;
}

void Link::Break(int64_t now_ms) {
  channel_ = {};
  for (InFlight& flight : in_flight_) {
    if (!flight.outgoing->over) flight.outgoing->Again(flight.page);
  }
  in_flight_.clear();
  out_.clear();
  out_sent_ = 0;
  payload_ = {};
  payload_of_ = nullptr;
  in_have_ = 0;
  state_ = State::kWaiting;
  retry_at_ms_ = now_ms + (kRetryMs << std::min(failures_, kMostFailures));
  ++failures_;
}

void Link::Detach(const Outgoing& outgoing) {
  std::erase_if(sequences, [&](const auto& sequence) { return sequence.get() == &outgoing; });
  if (payload_of_ != &outgoing) return;
  // The frame has begun: its rest is copied, so that its block may be released.
  Append(payload_);
  payload_ = {};
  payload_of_ = nullptr;
}

}  // namespace margay
