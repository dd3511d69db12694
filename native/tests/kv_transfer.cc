// Pages from one pool to another, and what a sender does when the other side fails it.
//   kv_transfer                     the claims
//   kv_transfer speed <shm|tcp>     bytes per second between two pools of full-size pages
#include <fcntl.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <set>

#include "claim.h"
#include "kv_sides.h"
#include "raw_peer.h"

namespace margay {
namespace {

// Chunk by chunk, attention by attention, with a partial last page.
std::string ArrivesWhole(bool shared_memory, bool allowed) {
  Finding finding;
  Decoder decoder(allowed);
  Prefiller prefiller;
  const SequenceRef here{3, 9}, there{5, 2};
  const auto tokens = TokensFrom(0, 300);
  const SequenceKvId received = decoder.Expect(there, tokens);
  const SequenceKvId sent = prefiller.Open(tokens);
  Must(prefiller.sender->Begin(here, sent, 300, decoder.Target(there, shared_memory)));
  for (int from = 0; from < 300; from += 50) prefiller.Compute(here, sent, 1, tokens, from, from + 50);
  const TransferOutcome out = prefiller.outcomes.Of(here), in = decoder.outcomes.Of(there);
  finding.Same("sender's cause", out.cause, "");
  finding.Same("receiver's cause", in.cause, "");
  finding.Same("pages", in.pages, uint64_t{15});
  finding.Same("bytes", in.bytes, 300 * 3 * kTestLayout.row_bytes());
  finding.Same("bytes counted by the receiver", decoder.receiver->counters().bytes, in.bytes);
  finding.Same("bytes counted by the sender", prefiller.sender->counters().bytes, in.bytes);
  decoder.receiver->Forget(there);
  finding.Expect(decoder.pool->Attach(received).ok(), "the received blocks could not be attached");
  finding.Same("rows", decoder.Compare(received, 1, 0, 300), "");
  decoder.pool->Close(received, true);
  prefiller.pool->Close(sent, true);
  finding.Same("decode pool", decoder.AtRest(), "");
  finding.Same("prefill pool", prefiller.AtRest(), "");
  return finding.what();
}

std::string KnownPrefixStays(bool shared_memory) {
  Finding finding;
  Decoder decoder;
  Prefiller prefiller;
  const auto tokens = TokensFrom(0, 200);
  for (int turn = 0; turn < 2; ++turn) {
    // The second turn: both sides have all rows but the last one's in their caches.
    const SequenceRef here{0, turn}, there{0, turn};
    const SequenceKvId received = decoder.Expect(there, tokens);
    const OpenedKv sent = Must(prefiller.pool->Open(tokens, 200, KvUse::kCompute));
    finding.Same("cached at the sender", sent.cached_tokens, turn * 199);
    finding.Same("cached at the receiver", decoder.cached_tokens, turn * 199);
    Must(prefiller.sender->Begin(here, sent.id, 200, decoder.Target(there, shared_memory)));
    prefiller.Compute(here, sent.id, 1, tokens, sent.cached_tokens, 200);
    finding.Same("cause", decoder.outcomes.Of(there).cause, "");
    finding.Same("pages", decoder.outcomes.Of(there).pages, turn == 0 ? uint64_t{12} : uint64_t{3});
    finding.Same("rows sent", decoder.outcomes.Of(there).bytes / kTestLayout.row_bytes(), turn == 0 ? 600u : 3u);
    decoder.receiver->Forget(there);
    finding.Expect(decoder.pool->Attach(received).ok(), "not attached");
    finding.Same("rows", decoder.Compare(received, 1, 0, 200), "");
    decoder.pool->Close(received, true);
    prefiller.outcomes.Of(here);
    prefiller.pool->Close(sent.id, true);
  }
  return finding.what();
}

// P has the prefix in its cache, D does not: it goes without a word from the engine.
std::string PrefixHitGoesAtOnce() {
  Finding finding;
  Decoder decoder;
  Prefiller prefiller;
  const auto tokens = TokensFrom(0, 200);
  const SequenceKvId first = prefiller.Open(tokens);
  prefiller.Compute({0, 0}, first, 1, tokens, 0, 200);
  prefiller.pool->Close(first, true);
  const SequenceKvId received = decoder.Expect({1, 1}, tokens);
  const SequenceKvId sent = prefiller.Open(tokens);
  Must(prefiller.sender->Begin({1, 1}, sent, 200, decoder.Target({1, 1}, true)));
  finding.Expect(Eventually([&] { return decoder.receiver->counters().pages == 9; }), "the cached blocks did not go");
  prefiller.Compute({1, 1}, sent, 1, tokens, 192, 200);
  finding.Same("cause", decoder.outcomes.Of({1, 1}).cause, "");
  finding.Same("rows", decoder.Compare(received, 1, 0, 200), "");
  decoder.Drop({1, 1}, received);
  prefiller.outcomes.Of({1, 1});
  prefiller.pool->Close(sent, true);
  finding.Same("prefill pool", prefiller.AtRest(), "");
  return finding.what();
}

std::string ManyAtOnce(bool shared_memory) {
  Finding finding;
  Decoder decoder(true, 256);
  Prefiller one(128), two(128);
  std::vector<SequenceKvId> received, sent;
  constexpr int kSequences = 16;
  for (int i = 0; i < kSequences; ++i) {
    const auto tokens = TokensFrom(i * 1000, 130 + i * 40);
    Prefiller& prefiller = i % 2 == 0 ? one : two;
    received.push_back(decoder.Expect({i, 1}, tokens));
    sent.push_back(prefiller.Open(tokens));
    Must(prefiller.sender->Begin({i, 1}, sent.back(), 130 + i * 40, decoder.Target({i, 1}, shared_memory)));
  }
  for (int from = 0; from < 130 + kSequences * 40; from += 96) {
    for (int i = 0; i < kSequences; ++i) {
      const auto tokens = TokensFrom(i * 1000, 130 + i * 40);
      const int to = std::min(from + 96, 130 + i * 40);
      if (from < to) (i % 2 == 0 ? one : two).Compute({i, 1}, sent[static_cast<size_t>(i)], i, tokens, from, to);
    }
  }
  for (int i = 0; i < kSequences; ++i) {
    finding.Same("cause", decoder.outcomes.Of({i, 1}).cause, "");
    finding.Same("cause", (i % 2 == 0 ? one : two).outcomes.Of({i, 1}).cause, "");
    finding.Same("rows", decoder.Compare(received[static_cast<size_t>(i)], i, 0, 130 + i * 40), "");
    decoder.Drop({i, 1}, received[static_cast<size_t>(i)]);
    (i % 2 == 0 ? one : two).pool->Close(sent[static_cast<size_t>(i)], true);
  }
  finding.Same("decode pool", decoder.AtRest(), "");
  finding.Same("prefill pools", one.AtRest() + two.AtRest(), "");
  return finding.what();
}

// Begins to send 200 computed tokens to `target` and returns the outcome; P's blocks must be at rest afterwards.
TransferOutcome SendTo(Finding* finding, const SendTarget& target, const std::string& model = kTestModel) {
  Prefiller prefiller(64, kTestLayout, model);
  const auto tokens = TokensFrom(0, 200);
  const SequenceKvId sent = prefiller.Open(tokens);
  Must(prefiller.sender->Begin({1, 1}, sent, 200, target));
  prefiller.Compute({1, 1}, sent, 1, tokens, 0, 200);
  prefiller.pool->Close(sent, true);
  const TransferOutcome outcome = prefiller.outcomes.Of({1, 1});
  finding->Same("prefill pool", prefiller.AtRest(), "");
  return outcome;
}

std::string RefusalsReachTheSender(bool shared_memory) {
  Finding finding;
  Decoder decoder;
  const SequenceKvId received = decoder.Expect({2, 2}, TokensFrom(0, 200));
  SendTarget target = decoder.Target({2, 2}, shared_memory);
  target.epoch = kTestEpoch - 1;
  finding.Same("old epoch", SendTo(&finding, target).cause, "stale_epoch");
  target = decoder.Target({2, 1}, shared_memory);
  finding.Same("old generation", SendTo(&finding, target).cause, "stale_handle");
  finding.Same("other model", SendTo(&finding, decoder.Target({2, 2}, shared_memory), "another").cause, "incompatible");
  target = decoder.Target({2, 2}, shared_memory);
  target.port = 1;
  finding.Same("nobody there", SendTo(&finding, target).cause, "connect");
  finding.Same("afterwards", SendTo(&finding, decoder.Target({2, 2}, shared_memory)).cause, "");
  finding.Same("rows", decoder.Compare(received, 1, 0, 200), "");
  decoder.Drop({2, 2}, received);
  return finding.what();
}

std::string DeadlinesPass() {
  Finding finding;
  Decoder decoder;
  Prefiller prefiller;
  const auto tokens = TokensFrom(0, 200);
  const SequenceKvId received = decoder.Expect({2, 2}, tokens, 100);
  const SequenceKvId sent = prefiller.Open(tokens);
  Must(prefiller.sender->Begin({1, 1}, sent, 200, decoder.Target({2, 2}, true, 300)));
  prefiller.Compute({1, 1}, sent, 1, tokens, 0, 100);  // and the rest never
  prefiller.pool->Close(sent, true);
  finding.Same("receiver's cause", decoder.outcomes.Of({2, 2}).cause, "deadline");
  finding.Same("sender's cause", prefiller.outcomes.Of({1, 1}).cause, "deadline");
  finding.Same("prefill pool", prefiller.AtRest(), "");
  // A deadline of the receiver alone: the sender hears that it is late.
  finding.Same("late", SendTo(&finding, decoder.Target({2, 2}, true)).cause, "late");
  finding.Same("arrived part", Must(decoder.pool->AttachArrived(received)), 64);
  decoder.Drop({2, 2}, received);
  finding.Same("decode pool", decoder.AtRest(), "");
  return finding.what();
}

std::string AbortReleases() {
  Finding finding;
  Decoder decoder;
  Prefiller prefiller;
  const auto tokens = TokensFrom(0, 200);
  const SequenceKvId received = decoder.Expect({2, 2}, tokens);
  const SequenceKvId sent = prefiller.Open(tokens);
  Must(prefiller.sender->Begin({1, 1}, sent, 200, decoder.Target({2, 2}, true)));
  finding.Expect(!prefiller.sender->Begin({1, 1}, sent, 200, decoder.Target({2, 2}, true)).ok(), "begun twice");
  prefiller.Compute({1, 1}, sent, 1, tokens, 0, 100);
  prefiller.sender->Abort({1, 1});
  prefiller.sender->Abort({1, 1});
  finding.Same("cause", prefiller.outcomes.Of({1, 1}).cause, "aborted");
  prefiller.pool->Close(sent, true);
  finding.Same("prefill pool", prefiller.AtRest(), "");
  prefiller.sender->Written({1, 1}, 0, 200);
  decoder.Drop({2, 2}, received);
  finding.Same("decode pool", decoder.AtRest(), "");
  finding.Same("outcomes of the forgotten", decoder.outcomes.count(), size_t{0});
  return finding.what();
}

std::string EndsWhileBusy() {
  Finding finding;
  for (const bool shared_memory : {true, false}) {
    Decoder decoder;
    Prefiller prefiller;
    const auto tokens = TokensFrom(0, 2000);
    const SequenceKvId received = decoder.Expect({2, 2}, tokens);
    const SequenceKvId sent = prefiller.Open(tokens);
    Must(prefiller.sender->Begin({1, 1}, sent, 2000, decoder.Target({2, 2}, shared_memory)));
    prefiller.Compute({1, 1}, sent, 1, tokens, 0, 1000);
    const int64_t before = NowMs();
    prefiller.sender.reset();
    decoder.receiver.reset();
    finding.Expect(NowMs() - before < 3000, "the threads did not end promptly");
    prefiller.pool->Close(sent, true);
    decoder.pool->Close(received, true);
    finding.Same("prefill pool", prefiller.AtRest(), "");
    finding.Same("decode pool", decoder.AtRest(), "");
  }
  return finding.what();
}

// A decode side made by hand: `serve` gets each connection after its greeting.
class FakeDecoder {
 public:
  explicit FakeDecoder(std::function<void(RawPeer&, int)> serve, const KvLayout& layout = kTestLayout)
      : listener_(Must(Listen(Must(TcpAddress("127.0.0.1", 0))))), thread_([this, serve, layout] {
          while (!over_) {
            pollfd polled{listener_.get(), POLLIN, 0};
            if (poll(&polled, 1, 20) <= 0) continue;
            Fd fd(accept(listener_.get(), nullptr, nullptr));
            const int turn = connections++;
            RawPeer peer(std::move(fd));
            std::vector<char> text(HelloText(layout, kTestModel).size());
            if (!peer.Answer() || !peer.Read(text.data(), text.size())) continue;
            FrameHead welcome;
            welcome.type = FrameType::kWelcome;
            peer.Send(welcome);
            serve(peer, turn);
          }
        }) {}
  ~FakeDecoder() {
    over_ = true;
    thread_.join();
  }
  SendTarget Target(int64_t wait_ms = kFarMs) const {
    return {"127.0.0.1", PortOf(listener_), false, kTestEpoch, {2, 2}, 0, NowMs() + wait_ms};
  }
  static std::optional<FrameHead> ReadPage(RawPeer& peer) {
    const auto head = peer.Answer();
    if (!head) return std::nullopt;
    std::vector<char> payload(head->payload_bytes);
    if (!peer.Read(payload.data(), payload.size())) return std::nullopt;
    return head;
  }
  static void Reply(RawPeer& peer, uint64_t ticket, std::optional<FrameRefusal> cause = std::nullopt) {
    FrameHead answer;
    answer.type = cause ? FrameType::kRefuse : FrameType::kAck;
    answer.ticket = ticket;
    if (cause) answer.cause = static_cast<uint32_t>(*cause);
    peer.Send(answer);
  }

  std::atomic<int> connections{0};

 private:
  Fd listener_;
  std::atomic<bool> over_{false};
  std::thread thread_;
};

std::string LostConnectionIsMadeAgain() {
  Finding finding;
  std::set<std::pair<int32_t, int32_t>> got;  // an answer may be lost with its connection: then the page comes again
  FakeDecoder twice([&](RawPeer& peer, int turn) {
    for (int pages = 0;; ++pages) {
      const auto page = FakeDecoder::ReadPage(peer);
      if (!page || (turn < 2 && pages == 3)) return;  // the connection ends with pages unanswered
      got.emplace(page->attention, page->block);
      FakeDecoder::Reply(peer, page->ticket);
    }
  });
  finding.Same("cause", SendTo(&finding, twice.Target()).cause, "");
  finding.Same("connections", twice.connections.load(), 3);
  finding.Same("pages", got.size(), size_t{12});

  FakeDecoder always([](RawPeer& peer, int) { FakeDecoder::ReadPage(peer); });
  finding.Same("cause when it never holds", SendTo(&finding, always.Target()).cause, "connection");
  finding.Same("connections when it never holds", always.connections.load(), 3);
  return finding.what();
}

std::string DamagedPageGoesAgain() {
  Finding finding;
  for (const int times : {2, 3}) {
    std::atomic<int> left = times;
    FakeDecoder decoder([&](RawPeer& peer, int) {
      while (const auto page = FakeDecoder::ReadPage(peer)) {
        const bool damaged = page->attention == 1 && page->block == 2 && left > 0;
        if (damaged) --left;
        FakeDecoder::Reply(peer, page->ticket, damaged ? std::optional(FrameRefusal::kChecksum) : std::nullopt);
      }
    });
    finding.Same("cause after " + std::to_string(times), SendTo(&finding, decoder.Target()).cause,
                 times == 2 ? "" : "checksum");
  }
  return finding.what();
}

// D reads nothing and answers nothing: the engine thread goes on, the blocks are held until the deadline and no longer.
// When D reads at last, it finds nothing of what came into the blocks afterwards.
std::string SilentDecoderHoldsNobody() {
  Finding finding;
  constexpr KvLayout kWide{3, 576, KvType::kF32};  // a window of pages is more than the sockets take
  constexpr int kBlocks = 100;
  std::atomic<bool> reads{false};
  std::atomic<int> pages{0}, later{0};
  std::atomic<int64_t> last_ms{0};
  FakeDecoder decoder(
      [&](RawPeer& peer, int) {
        Eventually([&] { return reads.load(); });
        std::vector<std::byte> payload(kWide.page_bytes());
        while (peer.Answer() && peer.Read(payload.data(), payload.size())) {
          ++pages;
          for (const std::byte byte : payload) later += byte == std::byte{0x22} ? 1 : 0;
          last_ms = NowMs();
        }
      },
      kWide);
  Prefiller prefiller(kBlocks, kWide);
  const auto tokens = TokensFrom(0, kBlockTokens * kBlocks);
  const SequenceKvId sent = prefiller.Open(tokens);
  const KvMemory memory = prefiller.pool->memory();
  const size_t bytes = memory.layout.block_bytes() * static_cast<size_t>(memory.blocks);
  std::memset(memory.base, 0x11, bytes);
  Must(prefiller.sender->Begin({1, 1}, sent, static_cast<int>(tokens.size()), decoder.Target(1'500)));
  const int64_t before = NowMs();
  for (int length = 64; length <= kBlockTokens * kBlocks; length += 64) {
    for (int attention = 0; attention < 3; ++attention) prefiller.sender->Written({1, 1}, attention, length);
  }
  finding.Expect(NowMs() - before < 1'500, "the engine thread waited for the network");
  prefiller.pool->Advance(sent, tokens, static_cast<int>(tokens.size()));
  prefiller.pool->Close(sent, true);
  finding.Same("sending", prefiller.Count(BlockState::kSending), kBlocks);
  finding.Same("cause", prefiller.outcomes.Of({1, 1}).cause, "deadline");
  finding.Same("prefill pool", prefiller.AtRest(), "");
  std::memset(memory.base, 0x22, bytes);
  reads = true;
  finding.Expect(Eventually([&] { return pages > 0 && NowMs() - last_ms > 200; }), "no page was on its way");
  prefiller.sender.reset();
  finding.Same("later bytes", later.load(), 0);
  return finding.what();
}

std::string NobodyElseWrites() {
  Finding finding;
  const PoolSide side;
  void* mapped = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, side.pool->memory_fd(), 0);
  finding.Expect(mapped == MAP_FAILED, "a peer could map the pool for writing");
  finding.Expect(pwrite(side.pool->memory_fd(), "x", 1, 0) < 0, "a peer could write into the pool's file");
  finding.Expect(ftruncate(side.pool->memory_fd(), 0) != 0, "a peer could cut the pool's file");
  return finding.what();
}

std::string BadTargetsAreRefused() {
  Finding finding;
  Decoder decoder;
  Prefiller prefiller;
  const SequenceKvId sent = prefiller.Open(TokensFrom(0, 100));
  SendTarget target = decoder.Target({1, 1}, false);
  target.host = "no.such.host";
  finding.Expect(!prefiller.sender->Begin({1, 1}, sent, 100, target).ok(), "a name was taken for an address");
  target = decoder.Target({1, 1}, false);
  target.cached_tokens = 100;
  finding.Expect(!prefiller.sender->Begin({1, 1}, sent, 100, target).ok(), "nothing is left to send");
  finding.Expect(!prefiller.sender->Begin({1, 1}, 999, 100, decoder.Target({1, 1}, false)).ok(), "an unknown sequence");
  finding.Expect(!decoder.receiver->Expect({1, 1}, 999, 0, 100, NowMs()).ok(), "an unknown sequence is expected");
  finding.Expect(
      !KvReceiver::Create(decoder.pool.get(), kTestModel, "127.0.0.1", decoder.receiver->port(), true, {}).ok(),
      "a port in use was taken");
  prefiller.pool->Close(sent, true);
  finding.Same("prefill pool", prefiller.AtRest(), "");
  return finding.what();
}

int RunClaims() {
  Claims claims;
  claims.Check("pages arrive whole over shared memory", ArrivesWhole(true, true));
  claims.Check("pages arrive whole over tcp", ArrivesWhole(false, true));
  claims.Check("a receiver without shared memory is reached over tcp", ArrivesWhole(true, false));
  claims.Check("what the receiver has is not sent, over shared memory", KnownPrefixStays(true));
  claims.Check("what the receiver has is not sent, over tcp", KnownPrefixStays(false));
  claims.Check("a prefix hit of the sender goes at once", PrefixHitGoesAtOnce());
  claims.Check("many sequences of two senders at once over shared memory", ManyAtOnce(true));
  claims.Check("many sequences of two senders at once over tcp", ManyAtOnce(false));
  claims.Check("refusals reach the sender over shared memory", RefusalsReachTheSender(true));
  claims.Check("refusals reach the sender over tcp", RefusalsReachTheSender(false));
  claims.Check("deadlines pass on both sides", DeadlinesPass());
  claims.Check("an aborted transfer releases its blocks and ends once", AbortReleases());
  claims.Check("both ends stop promptly in the middle of a transfer", EndsWhileBusy());
  claims.Check("a lost connection is made again twice", LostConnectionIsMadeAgain());
  claims.Check("a damaged page is sent again twice", DamagedPageGoesAgain());
  claims.Check("a silent receiver holds blocks until the deadline and never the engine", SilentDecoderHoldsNobody());
  claims.Check("nobody but the owner can write or cut a pool", NobodyElseWrites());
  claims.Check("bad targets are refused", BadTargetsAreRefused());
  return claims.ExitCode();
}

// 56 attentions of 576 bf16 values, as at full size; 2048 tokens.
int MeasureSpeed(bool shared_memory) {
  constexpr KvLayout kFull{56, 576, KvType::kBf16};
  constexpr int kTokens = 2048;
  Decoder decoder(true, kTokens / kBlockTokens, kFull);
  Prefiller prefiller(kTokens / kBlockTokens, kFull);
  std::memset(prefiller.pool->memory().base, 1, kFull.block_bytes() * (kTokens / kBlockTokens));
  std::memset(decoder.pool->memory().base, 2, kFull.block_bytes() * (kTokens / kBlockTokens));
  for (int turn = 0; turn < 5; ++turn) {
    const auto tokens = TokensFrom(turn * kTokens, kTokens);
    const SequenceKvId received = decoder.Expect({0, turn}, tokens);
    const SequenceKvId sent = prefiller.Open(tokens);
    const auto start = std::chrono::steady_clock::now();
    Must(prefiller.sender->Begin({0, turn}, sent, kTokens, decoder.Target({0, turn}, shared_memory)));
    for (int attention = 0; attention < kFull.attentions; ++attention) {
      prefiller.sender->Written({0, turn}, attention, kTokens);
    }
    const TransferOutcome outcome = prefiller.outcomes.Of({0, turn});
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s: %llu pages, %.0f MB in %.1f ms: %.2f GB/s %s\n", shared_memory ? "shm" : "tcp",
                static_cast<unsigned long long>(outcome.pages), static_cast<double>(outcome.bytes) / 1e6, seconds * 1e3,
                static_cast<double>(outcome.bytes) / 1e9 / seconds, outcome.cause.c_str());
    decoder.Drop({0, turn}, received);
    prefiller.pool->Close(sent, false);
  }
  return 0;
}

}  // namespace
}  // namespace margay

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "speed" && argc == 3) return margay::MeasureSpeed(std::string(argv[2]) == "shm");
  return margay::RunClaims();
}
