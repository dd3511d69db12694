// Every wait of the transport ends by itself, whoever is waited for. The claims wait at the same time.
#include <sys/socket.h>

#include <atomic>
#include <future>
#include <optional>

#include "claim.h"
#include "kv_sides.h"
#include "raw_peer.h"
#include "stage.h"

namespace margay {
namespace {

constexpr int64_t kHelloMs = 2'000;    // as the receiver promises
constexpr int64_t kConnectMs = 6'500;  // three attempts of 2 s, and the pauses between them
constexpr int kSlack = 3;
constexpr int kTokens = 200;

int64_t SteadyMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Sends 200 computed tokens to a port; the outcome's cause, or how it broke its word.
std::string CauseOf(int port, bool shared_memory, int64_t most_ms) {
  Prefiller prefiller;
  const auto tokens = TokensFrom(0, kTokens);
  const SequenceKvId sent = prefiller.Open(tokens);
  const int64_t start = SteadyMs();
  Must(prefiller.sender->Begin({1, 1}, sent, kTokens,
                               {"127.0.0.1", port, shared_memory, kTestEpoch, {2, 2}, 0, NowMs() + kFarMs}));
  prefiller.Compute({1, 1}, sent, 1, tokens, 0, kTokens);
  prefiller.pool->Close(sent, true);
  const std::string cause = prefiller.outcomes.Of({1, 1}).cause;
  const int64_t took = SteadyMs() - start;
  if (took > kSlack * most_ms) return cause + " after " + std::to_string(took) + " ms";
  const std::string held = prefiller.AtRest();
  return held.empty() ? cause : held;
}

// A listener whose queue is full: the kernel drops every further attempt to connect.
std::string Connecting() {
  Fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const Address any = *TcpAddress("127.0.0.1", 0);
  if (bind(listener.get(), reinterpret_cast<const sockaddr*>(&any.storage), any.bytes) != 0) return "no port";
  if (listen(listener.get(), 0) != 0) return "no listener";
  const Address full = *TcpAddress("127.0.0.1", PortOf(listener));
  std::vector<Fd> waiting;
  for (bool taken = true; taken && waiting.size() < 16;) {
    waiting.push_back(Must(StartConnect(full)));
    pollfd polled{waiting.back().get(), POLLOUT, 0};
    taken = poll(&polled, 1, 300) == 1;
  }
  Finding finding;
  finding.Same("cause", CauseOf(PortOf(listener), false, kConnectMs), "connect");
  return finding.what();
}

// The kernel accepts, and nobody ever answers the greeting.
std::string Greeting(bool shared_memory) {
  const Fd tcp = Must(Listen(*TcpAddress("127.0.0.1", 0)));
  std::optional<Fd> beside;
  if (shared_memory) beside = Must(Listen(UnixBeside(PortOf(tcp))));
  Finding finding;
  finding.Same("cause", CauseOf(PortOf(tcp), shared_memory, kConnectMs), "connect");
  return finding.what();
}

// Empty when the receiver closes the connection in time, without a word.
std::string ClosedWithin(RawPeer& peer, int64_t most_ms) {
  const int64_t start = SteadyMs();
  const std::string heard = peer.Heard();
  const int64_t took = SteadyMs() - start;
  if (heard != "closed") return "answered with " + heard;
  return took > kSlack * most_ms ? "closed after " + std::to_string(took) + " ms" : "";
}

std::string HalfHello() {
  Finding finding;
  const Stage stage;
  const int port = stage.decoder.receiver->port();
  const std::string text = HelloText(kTestLayout, kTestModel);
  std::vector<RawPeer> peers;
  peers.push_back(RawPeer::Tcp(port));
  peers.push_back(RawPeer::Unix(port));
  for (int i = 0; i < 2; ++i) {  // the head, and none of the text it announces
    peers.push_back(i == 0 ? RawPeer::Tcp(port) : RawPeer::Unix(port));
    peers.back().Send(RawPeer::Hello(text, static_cast<uint32_t>(text.size())));
  }
  for (RawPeer& peer : peers) finding.Same("a greeting that does not come", ClosedWithin(peer, kHelloMs), "");
  return finding.what();
}

std::string HalfPage() {
  Finding finding;
  Stage stage(1'000);
  RawPeer in_page = stage.Greeted(), in_head = stage.Greeted();
  const auto payload = PayloadOf(kBlockTokens, 1);
  in_page.Send(PageOf(stage.sequence, 1, 2, kBlockTokens, payload));
  in_page.Send(payload.data(), payload.size() / 2);
  in_head.Send(payload.data(), sizeof(FrameHead) / 2);
  // The sequence has its own deadline, and does not wait for that of the connection.
  const int64_t start = SteadyMs();
  finding.Same("cause", stage.decoder.outcomes.Of(stage.sequence).cause, "deadline");
  finding.Expect(SteadyMs() - start < kSlack * 1'000, "the sequence waited for the rest of the page");
  finding.Same("mid page", ClosedWithin(in_page, kSilentMs), "");
  finding.Same("mid head", ClosedWithin(in_head, kSilentMs), "");
  finding.Same("counted", stage.Refused(FrameRefusal::kTruncated), uint64_t{1});
  finding.Same("pool", stage.UntouchedBut(1, 2), "");
  return finding.what();
}

// Whoever paused in mid page keeps no one who wants the blocks back.
std::string ForgottenInMidPage() {
  Finding finding;
  Stage stage;
  RawPeer peer = stage.Greeted();
  const auto payload = PayloadOf(kBlockTokens, 1);
  peer.Send(PageOf(stage.sequence, 1, 2, kBlockTokens, payload));
  peer.Send(payload.data(), payload.size() / 2);
  finding.Expect(Eventually([&] { return stage.decoder.Count(BlockState::kReceiving) == 1; }),
                 "the half page did not come");
  const int64_t start = SteadyMs();
  stage.decoder.Drop(stage.sequence, stage.id);
  finding.Expect(SteadyMs() - start < 1'000, "the blocks were not given back while the peer paused");
  finding.Same("decode pool", stage.decoder.AtRest(), "");
  return finding.what();
}

// Frames go in and answers are never read: the receiver stops listening to the peer, and ends it.
std::string UnreadAnswers() {
  Finding finding;
  const Stage stage;
  RawPeer peer = stage.Greeted();
  FrameHead page = PageOf(stage.sequence, 1, 2, kBlockTokens, {});
  page.Seal();
  const std::vector<FrameHead> many(1'000, page);
  const int64_t start = SteadyMs();
  int rounds = 0;
  while (rounds < 100'000 && peer.Send(many.data(), many.size() * sizeof(FrameHead))) ++rounds;
  finding.Expect(rounds < 100'000, "answers were kept without bound");
  finding.Expect(SteadyMs() - start < kSlack * kSilentMs, "a peer that reads nothing was kept");
  RawPeer other = stage.Greeted();
  other.Send(page);
  finding.Same("another peer", other.Heard(), "truncated");
  return finding.what();
}

// The first connection takes pages and answers none; the pages come again on the second.
std::string UnansweredPages() {
  Finding finding;
  const Fd listener = Must(Listen(*TcpAddress("127.0.0.1", 0)));
  std::atomic<int> connections{0}, answered{0};
  std::thread decoder([&] {
    std::vector<RawPeer> peers;
    for (int turn = 0; turn < 2; ++turn) {
      Fd fd;
      if (!Eventually([&] { return static_cast<bool>(fd = Accept(listener)); })) return;
      ++connections;
      RawPeer& peer = peers.emplace_back(std::move(fd));
      std::vector<char> text(HelloText(kTestLayout, kTestModel).size());
      if (!peer.Answer() || !peer.Read(text.data(), text.size())) return;
      FrameHead welcome;
      welcome.type = FrameType::kWelcome;
      peer.Send(welcome);
      while (turn == 1) {
        const auto page = peer.Answer();
        if (!page) return;
        std::vector<char> payload(page->payload_bytes);
        if (!peer.Read(payload.data(), payload.size())) return;
        FrameHead ack;
        ack.type = FrameType::kAck;
        ack.ticket = page->ticket;
        peer.Send(ack);
        if (++answered == 12) return;
      }
    }
  });
  finding.Same("cause", CauseOf(PortOf(listener), false, kSilentMs), "");
  decoder.join();
  finding.Same("connections", connections.load(), 2);
  finding.Same("pages", answered.load(), 12);
  return finding.what();
}

int RunClaims() {
  const std::vector<std::pair<std::string, std::function<std::string()>>> claims = {
      {"a connection that is never made is given up", Connecting},
      {"a greeting that is never answered is given up, over tcp", [] { return Greeting(false); }},
      {"a greeting that is never answered is given up, over shared memory", [] { return Greeting(true); }},
      {"a peer that does not greet is closed", HalfHello},
      {"a peer that pauses in mid frame is closed, its sequence ends at its own deadline", HalfPage},
      {"a peer that pauses in mid page keeps nobody from the blocks", ForgottenInMidPage},
      {"a peer that reads no answers is closed, others are served", UnreadAnswers},
      {"a receiver that answers no pages is left for a new connection", UnansweredPages},
  };
  std::vector<std::future<std::string>> found;
  for (const auto& [name, check] : claims) found.push_back(std::async(std::launch::async, check));
  Claims told;
  for (size_t i = 0; i < claims.size(); ++i) told.Check(claims[i].first, found[i].get());
  return told.ExitCode();
}

}  // namespace
}  // namespace margay

int main() { return margay::RunClaims(); }
