// The decode side's end: one thread that polls, verifies and copies.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "core/checksum.h"
#include "core/thread_name.h"
#include "core/trace.h"
#include "kv/pool_image.h"
#include "transport/expectations.h"
#include "transport/frame.h"
#include "transport/kv_transfer.h"
#include "core/tls.h"

namespace margay {
namespace {

constexpr size_t kMaxPeers = 256;
constexpr int64_t kHelloMs = 2'000;  // from accept to the whole hello
constexpr int64_t kAcceptPauseMs = 100;
constexpr int kPagesPerTurn = 32;         // then other connections have theirs
constexpr size_t kMaxUnsent = 64 * 1024;  // answers a peer does not take; then nothing more is read from it
constexpr size_t kInputBytes = 4096;  // of heads, and of what comes with them

using Verdict = Expectations::Verdict;

// Keeps the loads of a copy before the loads that follow.
void FenceAfterCopy() {
#if defined(__SANITIZE_THREAD__)
  std::atomic<int> local{0};  // the sanitizer knows no fences
  local.fetch_add(1, std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

// One connection, from its first byte to its last.
//   greeting -> open -> over
struct Peer {
  Peer(Channel connection, bool is_unix)
      : channel(std::move(connection)), unix_socket(is_unix), hello_deadline(NowMs() + kHelloMs), moved_ms(NowMs()) {}

  Channel channel;
  const bool unix_socket;
  const int64_t hello_deadline;
  int64_t moved_ms;  // when bytes last came or went
  bool greeted = false;
  bool over = false;
  bool more = false;  // its turn ended with input left
  Fd passed;          // descriptor of the peer's pool
  std::unique_ptr<PoolImage> image;

  std::array<std::byte, kInputBytes> input;
  size_t input_from = 0, input_to = 0;
  bool in_payload = false;
  FrameHead head;     // of the payload that arrives
  Verdict verdict;    // of its page; wanted: the bytes go straight into the block
  std::vector<std::byte> aside;  // all other payload
  size_t payload_have = 0;

  std::vector<std::byte> unsent;
  size_t sent = 0;

  bool wanted_page() const { return head.type == FrameType::kPage && verdict.wanted(); }

  size_t waiting() const { return unsent.size() - sent; }
  bool stuck() const { return waiting() > kMaxUnsent; }
  // Until when the connection may stay as it is; -1: nothing is owed.
  int64_t deadline() const {
    if (!greeted) return hello_deadline;
    return in_payload || input_to > input_from || waiting() > 0 ? moved_ms + kSilentMs : -1;
  }
};

class Receiver final : public KvReceiver {
 public:
  Receiver(KvPool* pool, const std::string& model_hash, const TlsFiles& tls, Fd tcp, Fd unix_listener,
           OnTransfer on_transfer)
      : layout_(pool->memory().layout),
        hello_(HelloText(layout_, model_hash)),
        tls_(tls),
        tcp_(std::move(tcp)),
        unix_(std::move(unix_listener)),
        port_(PortOf(tcp_)),
        on_transfer_(std::move(on_transfer)),
        expectations_(pool),
        thread_([this] { Run(); }) {}

  ~Receiver() override {
    stopping_ = true;
    bell_.Ring();
    thread_.join();
  }

  int port() const override { return port_; }
  void SetEpoch(int64_t epoch) override { epoch_ = epoch; }
  Status Expect(SequenceRef sequence, SequenceKvId kv, int cached_tokens, int tokens, int64_t deadline_ms) override {
    Status status = expectations_.Expect(sequence, kv, cached_tokens, tokens, deadline_ms);
    if (status.ok()) bell_.Ring();  // for its deadline
    return status;
  }
  void Forget(SequenceRef sequence) override { expectations_.Forget(sequence); }
  TransferCounters counters() const override {
    std::lock_guard lock(counters_mutex_);
    return counters_;
  }

 private:
  void Run();
  void AcceptAll(const Fd& listener, bool is_unix);
  void Serve(Peer& peer);
  bool Fill(Peer& peer);
  bool FillPayload(Peer& peer, std::byte* payload);
  bool FillPage(Peer& peer);
  void OnHead(Peer& peer, const FrameHead& head);
  void OnPayload(Peer& peer);
  void OnHello(Peer& peer);
  void OnMappedPage(Peer& peer, const FrameHead& head);
  static std::optional<FrameRefusal> CopyMapped(const PoolImage& image, const FrameHead& page, std::byte* into);
  std::optional<FrameRefusal> Finish(const FrameHead& page, std::optional<FrameRefusal> refusal);
  void Tell(Peer& peer, const FrameHead& page, const Verdict& verdict);
  void Answer(Peer& peer, FrameType type, uint64_t ticket, FrameRefusal cause = FrameRefusal::kChecksum);
  void Refuse(Peer& peer, uint64_t ticket, FrameRefusal cause);
  void BreakOff(Peer& peer, FrameRefusal cause);
  void GiveUp(Peer& peer);
  static void Flush(Peer& peer);
  void Count(FrameRefusal cause);

  const KvLayout layout_;
  const std::string hello_;
  const TlsFiles tls_;
  const Fd tcp_;
  const Fd unix_;  // empty: no shared memory
  const int port_;
  const OnTransfer on_transfer_;
  Expectations expectations_;
  Doorbell bell_;
  std::atomic<int64_t> epoch_{0};
  std::atomic<bool> stopping_{false};
  mutable std::mutex counters_mutex_;
  TransferCounters counters_;
  std::vector<std::unique_ptr<Peer>> peers_;
  int64_t accept_after_ = 0;
  std::optional<TransferOutcome> complete_;  // with the page at hand
  std::thread thread_;                       // last: it uses all of the above
};

void Receiver::Run() {
  NameThread("margay-kv");
  BlockBrokenPipeSignal();
  std::vector<pollfd> polled;
  while (!stopping_) {
    int64_t until = expectations_.NextDeadline();
    const bool pause = NowMs() < accept_after_;
    if (pause && (until < 0 || accept_after_ < until)) until = accept_after_;
    polled.assign(
        {{bell_.fd(), POLLIN, 0}, {pause ? -1 : tcp_.get(), POLLIN, 0}, {pause ? -1 : unix_.get(), POLLIN, 0}});
    for (const auto& peer : peers_) {
      polled.push_back({peer->channel.fd().get(), peer->channel.Events(!peer->stuck(), peer->waiting() > 0), 0});
      const int64_t deadline = peer->deadline();
      if (deadline >= 0 && (until < 0 || deadline < until)) until = deadline;
      if (peer->more) until = 0;
    }
    PollUntil(polled, until);
    if (polled[0].revents != 0) bell_.Hush();
    const int64_t now = NowMs();
    for (size_t i = 0; i < peers_.size(); ++i) {
      Peer& peer = *peers_[i];
      if (polled[i + 3].revents != 0 || peer.more) Serve(peer);
      if (const int64_t deadline = peer.deadline(); deadline >= 0 && now >= deadline) GiveUp(peer);
    }
    std::erase_if(peers_, [](const auto& peer) { return peer->over; });
    if (polled[1].revents != 0) AcceptAll(tcp_, false);
    if (polled[2].revents != 0) AcceptAll(unix_, true);
    for (const TransferOutcome& outcome : expectations_.Expire(now)) on_transfer_(outcome);
  }
}

void Receiver::AcceptAll(const Fd& listener, bool is_unix) {
  while (Fd fd = Accept(listener)) {
    if (peers_.size() >= kMaxPeers || (is_unix && !SameUser(fd))) continue;
    const bool secure = !is_unix && tls_.given();
    Result<Channel> channel =
        secure ? Channel::Secure(std::move(fd), tls_, TlsSide::kAccepts) : Channel(std::move(fd));
    if (channel.ok()) peers_.push_back(std::make_unique<Peer>(std::move(*channel), is_unix));
  }
  // Out of descriptors: the connection stays readable, and asking again at once would spin.
  if (errno == EMFILE || errno == ENFILE) accept_after_ = NowMs() + kAcceptPauseMs;
}

// What can be done now for one connection, within its turn.
void Receiver::Serve(Peer& peer) {
  Flush(peer);
  peer.more = false;
  for (int pages = 0; !peer.over && !peer.stuck();) {
    if (pages == kPagesPerTurn) {
      peer.more = true;
      break;
    }
    if (peer.in_payload) {
      if (peer.payload_have == peer.head.payload_bytes) {
        OnPayload(peer);
        ++pages;
        continue;
      }
    } else if (peer.input_to - peer.input_from >= sizeof(FrameHead)) {
      FrameHead head;
      std::memcpy(&head, peer.input.data() + peer.input_from, sizeof head);
      peer.input_from += sizeof head;
      OnHead(peer, head);
      if (head.type == FrameType::kMappedPage) ++pages;
      continue;
    }
    if (!Fill(peer)) break;
  }
  Flush(peer);
}

// Reads once. False when there is nothing to read now, or never again.
bool Receiver::Fill(Peer& peer) {
  if (peer.in_payload) return peer.wanted_page() ? FillPage(peer) : FillPayload(peer, peer.aside.data());
  std::memmove(peer.input.data(), peer.input.data() + peer.input_from, peer.input_to - peer.input_from);
  peer.input_to -= peer.input_from;
  peer.input_from = 0;
  const std::span<std::byte> room = std::span(peer.input).subspan(peer.input_to);
  const ssize_t got = peer.unix_socket ? ReceiveWithFd(peer.channel.fd(), room, &peer.passed) : peer.channel.Receive(room);
  if (got < 0) {
    if (peer.input_to > 0) Count(FrameRefusal::kTruncated);
    if (!peer.greeted && peer.channel.secure()) Count(FrameRefusal::kMalformed);  // no TLS, or no certificate that holds
    peer.over = true;
  }
  if (got <= 0) return false;
  peer.moved_ms = NowMs();
  peer.input_to += static_cast<size_t>(got);
  return true;
}

// One piece of the payload to its place in `payload`. False as Fill.
bool Receiver::FillPayload(Peer& peer, std::byte* payload) {
  const std::span<std::byte> rest(payload + peer.payload_have, peer.head.payload_bytes - peer.payload_have);
  if (peer.input_from == peer.input_to) {
    const ssize_t got = peer.channel.Receive(rest, peer.input);  // with it the head of the next frame
    if (got < 0) {
      Count(FrameRefusal::kTruncated);
      peer.over = true;
    }
    if (got <= 0) return false;
    peer.moved_ms = NowMs();
    const size_t taken = std::min(rest.size(), static_cast<size_t>(got));
    peer.payload_have += taken;
    peer.input_from = 0;
    peer.input_to = static_cast<size_t>(got) - taken;
    return true;
  }
  const size_t taken = std::min(rest.size(), peer.input_to - peer.input_from);
  std::memcpy(rest.data(), peer.input.data() + peer.input_from, taken);
  peer.input_from += taken;
  peer.payload_have += taken;
  return true;
}

// The block is claimed for one piece at a time: a peer that pauses in mid page holds nobody up. What other peers wrote
// into the page between the pieces, the checksum of the whole finds.
bool Receiver::FillPage(Peer& peer) {
  const trace::Span span("receive page");
  const Expectations::Claim claim = expectations_.Take(peer.head);
  if (!claim.verdict.wanted()) {
    peer.verdict = claim.verdict;
    return true;
  }
  const bool filled = FillPayload(peer, claim.into);
  const bool complete = peer.payload_have == peer.head.payload_bytes;
  const bool whole = complete && Checksum(claim.into, peer.head.payload_bytes) == peer.head.payload_checksum;
  std::optional<FrameRefusal> refusal;
  if (complete && !whole) refusal = FrameRefusal::kChecksum;
  if (!expectations_.Finish(peer.head, whole, &complete_)) refusal = FrameRefusal::kStaleHandle;
  peer.verdict.refusal = refusal;
  return filled;
}

void Receiver::OnHead(Peer& peer, const FrameHead& head) {
  if (const auto fault = head.Fault()) return BreakOff(peer, *fault);
  const bool hello = head.type == FrameType::kHello;
  if (hello == peer.greeted) return BreakOff(peer, FrameRefusal::kMalformed);
  if (head.type == FrameType::kMappedPage) return OnMappedPage(peer, head);
  if (!hello && head.type != FrameType::kPage) return BreakOff(peer, FrameRefusal::kMalformed);
  if (head.payload_bytes > (hello ? kMaxHelloBytes : layout_.page_bytes())) {
    return BreakOff(peer, FrameRefusal::kMalformed);
  }
  if (!hello) {
    peer.verdict = head.epoch == epoch_ ? expectations_.Judge(head) : Verdict{FrameRefusal::kStaleEpoch, false};
  }
  peer.head = head;
  peer.in_payload = true;
  peer.aside.resize(head.payload_bytes);
  peer.payload_have = 0;
}

void Receiver::OnPayload(Peer& peer) {
  peer.in_payload = false;
  if (peer.head.type == FrameType::kHello) return OnHello(peer);
  Tell(peer, peer.head, peer.verdict);
}

void Receiver::OnHello(Peer& peer) {
  if (Checksum(peer.aside.data(), peer.aside.size()) != peer.head.payload_checksum) {
    return BreakOff(peer, FrameRefusal::kMalformed);
  }
  const std::string_view text(reinterpret_cast<const char*>(peer.aside.data()), peer.aside.size());
  if (text != hello_) return BreakOff(peer, FrameRefusal::kIncompatible);
  if (peer.unix_socket) {
    if (!peer.passed) return BreakOff(peer, FrameRefusal::kIncompatible);
    Result<std::unique_ptr<PoolImage>> image = PoolImage::Map(peer.passed.Release(), layout_);
    if (!image.ok()) return BreakOff(peer, FrameRefusal::kIncompatible);
    peer.image = std::move(*image);
  }
  peer.greeted = true;
  Answer(peer, FrameType::kWelcome, 0);
}

void Receiver::OnMappedPage(Peer& peer, const FrameHead& page) {
  if (peer.image == nullptr) return BreakOff(peer, FrameRefusal::kMalformed);
  const trace::Span span("receive page");
  Verdict verdict;
  if (page.epoch != epoch_) {
    verdict.refusal = FrameRefusal::kStaleEpoch;
  } else if (page.source_block < 0 || page.source_block >= peer.image->blocks()) {
    verdict.refusal = FrameRefusal::kUnknownPage;
  } else {
    const Expectations::Claim claim = expectations_.Take(page);
    verdict = claim.verdict;
    if (verdict.wanted()) verdict.refusal = Finish(page, CopyMapped(*peer.image, page, claim.into));
  }
  Tell(peer, page, verdict);
}

// The owner bumps the generation before it reuses a block: equal before and after the copy means that the rows were of
// one life of the block. The checksum is that of the bytes stored, which the peer cannot change any more.
std::optional<FrameRefusal> Receiver::CopyMapped(const PoolImage& image, const FrameHead& page, std::byte* into) {
  const std::atomic<uint32_t>& generation = image.head()->generations()[page.source_block];
  if (generation.load(std::memory_order_acquire) != page.source_generation) return FrameRefusal::kStaleSource;
  const std::byte* from = image.memory().row(page.attention, page.source_block, page.first_row);
  const uint64_t sum = CopyWithChecksum(into, from, page.payload_bytes);
  FenceAfterCopy();
  if (generation.load(std::memory_order_acquire) != page.source_generation) return FrameRefusal::kStaleSource;
  if (sum != page.payload_checksum) return FrameRefusal::kChecksum;
  return std::nullopt;
}

// Ends a claim.
std::optional<FrameRefusal> Receiver::Finish(const FrameHead& page, std::optional<FrameRefusal> refusal) {
  if (!expectations_.Finish(page, !refusal, &complete_)) return FrameRefusal::kStaleHandle;
  return refusal;
}

// Counts, answers, and reports the transfer when this was its last page.
void Receiver::Tell(Peer& peer, const FrameHead& page, const Verdict& verdict) {
  if (verdict.refusal) return Refuse(peer, page.ticket, *verdict.refusal);
  {
    std::lock_guard lock(counters_mutex_);
    counters_.duplicates += verdict.duplicate ? 1 : 0;
    counters_.pages += verdict.duplicate ? 0 : 1;
    counters_.bytes += verdict.duplicate ? 0 : page.payload_bytes;
  }
  Answer(peer, FrameType::kAck, page.ticket);
  if (complete_) on_transfer_(*std::exchange(complete_, std::nullopt));
}

void Receiver::Answer(Peer& peer, FrameType type, uint64_t ticket, FrameRefusal cause) {
  FrameHead answer;
  answer.type = type;
  answer.ticket = ticket;
  if (type == FrameType::kRefuse) answer.cause = static_cast<uint32_t>(cause);
  answer.Seal();
  const auto* bytes = reinterpret_cast<const std::byte*>(&answer);
  peer.unsent.insert(peer.unsent.end(), bytes, bytes + sizeof answer);
}

void Receiver::Refuse(Peer& peer, uint64_t ticket, FrameRefusal cause) {
  Count(cause);
  Answer(peer, FrameType::kRefuse, ticket, cause);
}

// The stream cannot be followed any further.
void Receiver::BreakOff(Peer& peer, FrameRefusal cause) {
  Refuse(peer, 0, cause);
  Flush(peer);
  // Input left unread would make the kernel reset the connection, and the reason might not arrive.
  for (int reads = 0; reads < 64 && peer.channel.Receive(peer.input) > 0; ++reads) {
  }
  peer.over = true;
}

// The peer moves nothing any more.
void Receiver::GiveUp(Peer& peer) {
  if (!peer.over && peer.greeted && peer.in_payload) Count(FrameRefusal::kTruncated);
  peer.over = true;
}

void Receiver::Flush(Peer& peer) {
  while (peer.waiting() > 0) {
    const ssize_t moved = peer.channel.Send(std::span(peer.unsent).subspan(peer.sent));
    if (moved < 0) peer.over = true;
    if (moved <= 0) return;
    peer.moved_ms = NowMs();
    peer.sent += static_cast<size_t>(moved);
  }
  peer.unsent.clear();
  peer.sent = 0;
}

void Receiver::Count(FrameRefusal cause) {
  std::lock_guard lock(counters_mutex_);
  ++counters_.refused[static_cast<size_t>(cause)];
}

}  // namespace

Result<std::unique_ptr<KvReceiver>> KvReceiver::Create(KvPool* pool, const std::string& model_hash,
                                                       const std::string& host, int port, bool allow_shared_memory,
                                                       OnTransfer on_transfer, const TlsFiles& tls) {
  Result<Address> address = TcpAddress(host, port);
  if (!address.ok()) return address.status();
  if (HelloText(pool->memory().layout, model_hash).size() > kMaxHelloBytes) {
    return Status(Code::kBadArgument, "the model hash is too long");
  }
  if (Status status = tls.given() ? CheckTls(tls) : Status::Ok(); !status.ok()) return status;
  // Another process may hold the Unix name of a port that is free for TCP on this address: any other port will do then.
  for (int attempt = 0;; ++attempt) {
    Result<Fd> tcp = Listen(*address);
    if (!tcp.ok()) return tcp.status();
    Fd unix_listener;
    if (allow_shared_memory) {
      Result<Fd> beside = Listen(UnixBeside(PortOf(*tcp)));
      if (!beside.ok() && (port != 0 || attempt == 8)) return beside.status();
      if (!beside.ok()) continue;
      unix_listener = std::move(*beside);
    }
    return std::unique_ptr<KvReceiver>(std::make_unique<Receiver>(pool, model_hash, tls, std::move(*tcp),
                                                                  std::move(unix_listener), std::move(on_transfer)));
  }
}

}  // namespace margay
