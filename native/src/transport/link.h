// Owns the connection from this P to one D: connecting, greeting, framing and the pages in flight.
//
//   waiting (retry_at) -> connecting -> greeting -> open -> waiting | over
//
// L1 answers come in the order of the frames, one for each
// L2 at most kWindow pages are in flight
// L3 with pages in flight, the next answer comes within kSilentMs
// L4 bytes of a sequence that is over are never read from the pool again (Detach)
// Belongs to the sender's thread.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "transport/outgoing.h"
#include "core/tls.h"

namespace margay {

class Link {
 public:
  static constexpr size_t kWindow = 64;
  static constexpr int64_t kConnectMs = 2'000;  // from the first packet to the welcome
  static constexpr int64_t kRetryMs = 50;       // doubles with every failure in a row

  enum class State : uint8_t { kWaiting, kConnecting, kGreeting, kOpen };

  struct InFlight {
    std::shared_ptr<Outgoing> outgoing;
    Outgoing::Page page;
    uint64_t ticket = 0;
    uint32_t bytes = 0;
  };
  // One answer of D, beside the page it is about.
  struct Answer {
    InFlight about;
    std::optional<FrameRefusal> refusal;
  };

  // `tls` is of connections over TCP; its files may be none.
  Link(KvPool* pool, const std::string& hello, const TlsFiles& tls, const SendTarget& target)
      : host(target.host),
        port(target.port),
        shared_memory(target.shared_memory),
        pool_(pool),
        hello_(hello),
        tls_(tls),
        mapped_(target.shared_memory) {}

  const std::string host;
  const int port;
  const bool shared_memory;  // wished for; a peer that offers none is reached by TCP
  std::vector<std::shared_ptr<Outgoing>> sequences;
  int64_t idle_since_ms = 0;

  bool Serves(const SendTarget& target) const {
    return target.host == host && target.port == port && target.shared_memory == shared_memory;
  }
  State state() const { return state_; }
  int fd() const { return channel_.fd().get(); }
  short Events() const;
  int64_t NextDeadline() const;  // -1: none
  int64_t progress_ms() const { return progress_ms_; }

  // Does what can be done now. Answers are appended; false when the connection failed, see `incompatible`.
  bool Serve(int64_t now_ms, short revents, std::vector<Answer>* answers);
  bool incompatible() const { return incompatible_; }
  // Sends what is due, as far as window and socket allow. False when the connection failed.
  bool Pump();
  // Gives the pages in flight back to their sequences and waits for the next attempt.
  void Break(int64_t now_ms);
  void Detach(const Outgoing& outgoing);

 private:
  bool Silent(int64_t now_ms) const { return !in_flight_.empty() && now_ms - progress_ms_ >= kSilentMs; }
  bool Start(int64_t now_ms);
  bool FallBack();
  bool Greet();
  bool Read(std::vector<Answer>* answers);
  bool OnAnswer(const FrameHead& head, std::vector<Answer>* answers);
  bool FillOne();
  void Append(std::span<const std::byte> bytes);
  bool Flush();

  KvPool* const pool_;
  const std::string& hello_;
  const TlsFiles& tls_;
  bool mapped_;
  State state_ = State::kWaiting;
  bool incompatible_ = false;
  Channel channel_;
  int64_t deadline_ms_ = 0;  // of the attempt
  int64_t retry_at_ms_ = 0;
  int failures_ = 0;  // in a row
  int64_t progress_ms_ = 0;  // last answer, or first page in flight
  uint64_t next_ticket_ = 1;
  size_t turn_ = 0;  // whose page is next

  std::deque<InFlight> in_flight_;
  std::vector<std::byte> out_;  // heads and copied payload, before `payload_`
  size_t out_sent_ = 0;
  std::span<const std::byte> payload_;  // rest of the page being sent, in the pool
  const Outgoing* payload_of_ = nullptr;
  std::array<std::byte, 4096> in_;
  size_t in_have_ = 0;
};

}  // namespace margay
