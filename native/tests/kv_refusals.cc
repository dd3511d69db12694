// What a receiver does with frames that are wrong, late or stale, and with connections that are no good.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <thread>

#include "claim.h"
#include "kv/pool_image.h"
#include "kv_sides.h"
#include "raw_peer.h"
#include "stage.h"

namespace margay {
namespace {

// A page with one thing wrong is refused with its cause, counted, and the connection goes on.
std::string WrongPages() {
  Finding finding;
  Stage stage;
  RawPeer peer = stage.Greeted();
  const auto payload = PayloadOf(kBlockTokens, 1);
  const FrameHead good = PageOf(stage.sequence, 1, 2, kBlockTokens, payload);
  const auto expect = [&](const std::string& what, FrameHead page, const std::vector<std::byte>& bytes,
                          FrameRefusal cause) {
    const uint64_t before = stage.Refused(cause);
    peer.Send(page, bytes);
    finding.Same(what, peer.Heard(), FrameRefusalName(cause));
    finding.Same(what + ", counted", stage.Refused(cause), before + 1);
  };
  const auto with = [&](auto change) {
    FrameHead page = good;
    change(page);
    return page;
  };
  for (const size_t bit : {size_t{0}, size_t{7}, payload.size() * 4 + 3, payload.size() * 8 - 1}) {
    auto flipped = payload;
    flipped[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    expect("flipped bit " + std::to_string(bit), good, flipped, FrameRefusal::kChecksum);
  }
  finding.Same("pool but the damaged page", stage.UntouchedBut(good.attention, good.block), "");
  stage.Mark();
  expect("a page one row short", with([](FrameHead& p) { p.payload_bytes -= 64; }),
         std::vector<std::byte>(payload.begin(), payload.end() - 64), FrameRefusal::kTruncated);
  expect("a page without bytes", with([](FrameHead& p) { p.payload_bytes = 0; }), {}, FrameRefusal::kTruncated);
  expect("another epoch", with([](FrameHead& p) { --p.epoch; }), payload, FrameRefusal::kStaleEpoch);
  expect("an older generation", with([](FrameHead& p) { --p.sequence.generation; }), payload,
         FrameRefusal::kStaleHandle);
  expect("a later generation", with([](FrameHead& p) { ++p.sequence.generation; }), payload,
         FrameRefusal::kStaleHandle);
  expect("a slot nobody has", with([](FrameHead& p) { p.sequence.slot = -1; }), payload, FrameRefusal::kStaleHandle);
  expect("an attention too many", with([](FrameHead& p) { p.attention = 3; }), payload, FrameRefusal::kUnknownPage);
  expect("a negative attention", with([](FrameHead& p) { p.attention = -1; }), payload, FrameRefusal::kUnknownPage);
  expect("a block beyond the end", with([](FrameHead& p) { p.block = 4; }), payload, FrameRefusal::kUnknownPage);
  expect("a cached block", with([](FrameHead& p) { p.block = 0; }), payload, FrameRefusal::kUnknownPage);
  expect("the least block", with([](FrameHead& p) { p.block = INT32_MIN; }), payload, FrameRefusal::kUnknownPage);
  expect("the greatest block", with([](FrameHead& p) { p.block = INT32_MAX; }), payload, FrameRefusal::kUnknownPage);
  expect("too many rows", with([](FrameHead& p) { p.block = 3; }), payload, FrameRefusal::kUnknownPage);
  finding.Same("pool", stage.Untouched(), "");
  peer.Send(good, payload);
  finding.Same("the good page afterwards", peer.Heard(), "ack");
  finding.Same("pages", stage.decoder.receiver->counters().pages, uint64_t{1});
  stage.decoder.Drop(stage.sequence, stage.id);
  finding.Same("decode pool", stage.decoder.AtRest(), "");
  return finding.what();
}

// What breaks the framing or the greeting ends the connection, and only that.
std::string WrongConnections() {
  Finding finding;
  Stage stage;
  const int port = stage.decoder.receiver->port();
  const auto payload = PayloadOf(kBlockTokens, 1);
  const FrameHead page = PageOf(stage.sequence, 1, 2, kBlockTokens, payload);
  const auto expect = [&](const std::string& what, RawPeer& peer, FrameRefusal cause) {
    finding.Same(what, peer.Heard(), FrameRefusalName(cause));
    finding.Same(what + ", afterwards", peer.Heard(), "closed");
    finding.Expect(stage.Refused(cause) > 0, what + " was not counted");
  };
  RawPeer noise = RawPeer::Tcp(port);
  const std::string http =
      "GET / HTTP/1.1\r\nHost: somebody\r\nAccept: text/html,application/xhtml+xml\r\nUser-Agent: x\r\n\r\n";
  noise.Send(http.data(), http.size());
  expect("noise", noise, FrameRefusal::kMalformed);

  RawPeer early = RawPeer::Tcp(port);
  early.Send(page, payload);
  expect("a page before the greeting", early, FrameRefusal::kMalformed);

  RawPeer twice = stage.Greeted();
  twice.Greet();
  expect("a second greeting", twice, FrameRefusal::kMalformed);

  RawPeer huge = stage.Greeted();
  FrameHead oversized = page;
  oversized.payload_bytes = 0xffffffff;
  huge.Send(oversized);
  expect("a payload beyond a page", huge, FrameRefusal::kMalformed);

  RawPeer long_hello = RawPeer::Tcp(port);
  long_hello.Send(RawPeer::Hello("", kMaxHelloBytes + 1));
  expect("a greeting beyond its limit", long_hello, FrameRefusal::kMalformed);

  RawPeer answer = stage.Greeted();
  FrameHead ack;
  ack.type = FrameType::kAck;
  answer.Send(ack);
  expect("an answer from the sender", answer, FrameRefusal::kMalformed);

  RawPeer mapped = stage.Greeted();
  FrameHead mapped_page = page;
  mapped_page.type = FrameType::kMappedPage;
  mapped.Send(mapped_page);
  expect("a mapped page without a mapping", mapped, FrameRefusal::kMalformed);

  RawPeer version = RawPeer::Tcp(port);
  FrameHead future = RawPeer::Hello("", 0);
  future.version = kFrameVersion + 1;
  version.Send(future);
  expect("another version", version, FrameRefusal::kIncompatible);

  RawPeer layout = RawPeer::Tcp(port);
  layout.Greet(HelloText({3, 32, KvType::kF32}, kTestModel));
  expect("another layout", layout, FrameRefusal::kIncompatible);

  RawPeer model = RawPeer::Tcp(port);
  model.Greet(HelloText(kTestLayout, "another model"));
  expect("another model", model, FrameRefusal::kIncompatible);

  RawPeer mute = RawPeer::Tcp(port);  // says nothing: closed after the greeting's time
  finding.Same("silence", mute.Heard(), "closed");

  finding.Same("pool", stage.Untouched(), "");
  RawPeer peer = stage.Greeted();
  peer.Send(page, payload);
  finding.Same("a good connection afterwards", peer.Heard(), "ack");
  stage.decoder.Drop(stage.sequence, stage.id);
  finding.Same("decode pool", stage.decoder.AtRest(), "");
  return finding.what();
}

// Whichever bit of a page frame is turned on its way, nothing is acknowledged and nothing written.
std::string EveryHeadBit() {
  Finding finding;
  Stage stage;
  const auto payload = PayloadOf(kBlockTokens, 1);
  FrameHead good = PageOf(stage.sequence, 1, 2, kBlockTokens, payload);
  good.Seal();
  for (size_t bit = 0; bit < sizeof good * 8 && !finding.any(); ++bit) {
    RawPeer peer = stage.Greeted();
    FrameHead flipped = good;
    reinterpret_cast<unsigned char*>(&flipped)[bit / 8] ^= static_cast<unsigned char>(1 << (bit % 8));
    peer.Send(&flipped, sizeof flipped);
    finding.Same("bit " + std::to_string(bit), peer.Heard(), "malformed");
  }
  finding.Same("counted", stage.Refused(FrameRefusal::kMalformed), uint64_t{sizeof good * 8});
  finding.Same("pool", stage.Untouched(), "");
  stage.decoder.Drop(stage.sequence, stage.id);
  return finding.what();
}

std::string UsedAndLate() {
  Finding finding;
  Stage stage;
  RawPeer peer = stage.Greeted();
  const auto send = [&](int attention, int block, int rows, int salt) {
    const auto payload = PayloadOf(rows, salt);
    peer.Send(PageOf(stage.sequence, attention, block, rows, payload), payload);
    return peer.Heard();
  };
  finding.Same("first", send(0, 1, 64, 1), "ack");
  finding.Same("the same again, with other bytes", send(0, 1, 64, 2), "ack");
  finding.Same("duplicates", stage.decoder.receiver->counters().duplicates, uint64_t{1});
  const int32_t block = stage.decoder.pool->BlockTable(stage.id)[1];
  const auto first = PayloadOf(64, 1);
  const std::byte* page = stage.decoder.pool->memory().page(0, block);
  finding.Expect(std::memcmp(page, first.data(), first.size()) == 0, "a duplicate was written");
  for (int attention = 0; attention < 3; ++attention) {
    for (int logical = 1; logical < 4; ++logical) {
      finding.Same("page", send(attention, logical, logical == 3 ? 8 : 64, 3), "ack");
    }
  }
  finding.Same("cause", stage.decoder.outcomes.Of(stage.sequence).cause, "");
  finding.Same("complete and not yet forgotten", send(2, 3, 8, 9), "ack");
  stage.decoder.receiver->Forget(stage.sequence);
  Must(stage.decoder.pool->Attach(stage.id));
  const std::vector<std::byte> rows(page, page + 64);
  finding.Same("used", send(0, 1, 64, 9), "stale_handle");
  finding.Same("used, last", send(2, 3, 8, 9), "stale_handle");
  finding.Expect(std::memcmp(page, rows.data(), rows.size()) == 0, "an attached block was written");
  stage.decoder.pool->Close(stage.id, true);
  finding.Same("decode pool", stage.decoder.AtRest(), "");

  Stage brief(50);
  RawPeer slow = brief.Greeted();
  finding.Same("cause past the deadline", brief.decoder.outcomes.Of(brief.sequence).cause, "deadline");
  const auto payload = PayloadOf(64, 1);
  slow.Send(PageOf(brief.sequence, 0, 1, 64, payload), payload);
  finding.Same("past the deadline", slow.Heard(), "late");
  finding.Same("pool", brief.Untouched(), "");
  return finding.what();
}

// Over shared memory a sender can point anywhere; what it points at is checked.
std::string WrongMappings() {
  Finding finding;
  Stage stage;
  const PoolSide source(8);
  const auto tokens = TokensFrom(0, kStageTokens);
  const SequenceKvId sent = Must(source.pool->Open(tokens, kStageTokens, KvUse::kCompute)).id;
  for (int attention = 0; attention < 3; ++attention) source.Write(sent, 1, attention, 0, kStageTokens);
  const BlockLease lease = Must(source.pool->StartFlight(sent, 2, 1, Flight::kOut))[0];
  const std::byte* rows = source.pool->memory().page(1, lease.block);
  FrameHead good = PageOf(stage.sequence, 1, 2, 64, std::vector<std::byte>(rows, rows + kTestLayout.page_bytes()));
  good.type = FrameType::kMappedPage;
  good.source_block = lease.block;
  good.source_generation = lease.generation;

  RawPeer peer = RawPeer::Unix(stage.decoder.receiver->port());
  peer.GreetWithPool(source.pool->memory_fd());
  finding.Same("greeting", peer.Heard(), "welcome");
  const auto expect = [&](const std::string& what, auto change, FrameRefusal cause) {
    FrameHead page = good;
    change(page);
    peer.Send(page);
    finding.Same(what, peer.Heard(), FrameRefusalName(cause));
  };
  expect("another generation", [](FrameHead& p) { ++p.source_generation; }, FrameRefusal::kStaleSource);
  expect("a block beyond the pool", [](FrameHead& p) { p.source_block = 8; }, FrameRefusal::kUnknownPage);
  expect("a negative block", [](FrameHead& p) { p.source_block = -1; }, FrameRefusal::kUnknownPage);
  expect("an old epoch", [](FrameHead& p) { --p.epoch; }, FrameRefusal::kStaleEpoch);
  expect("an old handle", [](FrameHead& p) { --p.sequence.generation; }, FrameRefusal::kStaleHandle);
  expect("too few bytes", [](FrameHead& p) { p.payload_bytes -= 64; }, FrameRefusal::kTruncated);
  expect("too many bytes", [](FrameHead& p) { p.payload_bytes += 64; }, FrameRefusal::kTruncated);
  finding.Same("pool", stage.Untouched(), "");
  expect("another checksum", [](FrameHead& p) { ++p.payload_checksum; }, FrameRefusal::kChecksum);
  peer.Send(good);
  finding.Same("the good page", peer.Heard(), "ack");

  const auto refused_pool = [&](const std::string& what, int fd) {
    RawPeer other = RawPeer::Unix(stage.decoder.receiver->port());
    other.GreetWithPool(fd);
    finding.Same(what, other.Heard(), "incompatible");
  };
  const Fd unsealed(memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (ftruncate(unsealed.get(), 1 << 20) != 0) std::abort();
  refused_pool("a file that could shrink", unsealed.get());
  const PoolSide narrow(8, {3, 8, KvType::kF32});
  refused_pool("a pool of another layout", narrow.pool->memory_fd());
  RawPeer without = RawPeer::Unix(stage.decoder.receiver->port());
  without.Greet();
  finding.Same("no pool at all", without.Heard(), "incompatible");
  stage.decoder.Drop(stage.sequence, stage.id);
  finding.Same("decode pool", stage.decoder.AtRest(), "");
  return finding.what();
}

// The owner reuses a block that a peer still reads, over and over: what is taken is of one life of the block.
std::string ReusedSource() {
  Finding finding;
  Decoder decoder;
  const PoolSide source(1);
  const auto seen = Must(PoolImage::Map(dup(source.pool->memory_fd()), kTestLayout));  // as the peer sees it
  RawPeer peer = RawPeer::Unix(decoder.receiver->port());
  peer.GreetWithPool(source.pool->memory_fd());
  finding.Same("greeting", peer.Heard(), "welcome");
  std::atomic<bool> over{false};
  std::thread owner([&] {
    for (int life = 0; !over; ++life) {
      const SequenceKvId id = Must(source.pool->Open(TokensFrom(0, 64), 64, KvUse::kCompute)).id;
      std::memset(source.pool->memory().page(0, 0), life & 0xff, kTestLayout.page_bytes());
      if (life % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
      source.pool->Close(id, false);
    }
  });
  int taken = 0, refused = 0, turn = 0;
  Eventually([&] {
    const SequenceRef sequence{0, turn};
    const SequenceKvId id = decoder.Expect(sequence, TokensFrom(turn++ * 64, 64));
    FrameHead page = PageOf(sequence, 0, 0, 64, {});
    page.type = FrameType::kMappedPage;
    page.payload_bytes = static_cast<uint32_t>(kTestLayout.page_bytes());
    page.source_generation = seen->head()->generations()[0].load();
    page.payload_checksum = Checksum(seen->memory().page(0, 0), kTestLayout.page_bytes());
    peer.Send(page);
    if (peer.Heard() == "ack") {
      ++taken;
      const std::byte* got = decoder.pool->memory().page(0, decoder.pool->BlockTable(id)[0]);
      finding.Same("checksum of what was taken", Checksum(got, kTestLayout.page_bytes()), page.payload_checksum);
    } else {
      ++refused;
    }
    decoder.Drop(sequence, id);
    return finding.any() || (taken >= 20 && refused >= 20);
  });
  over = true;
  owner.join();
  finding.Expect(taken >= 20 && refused >= 20, "the reuse was not met often enough to show anything");
  return finding.what();
}

int RunClaims() {
  Claims claims;
  claims.Check("a page with one thing wrong is refused by its cause", WrongPages());
  claims.Check("broken framing and foreign peers end their connection only", WrongConnections());
  claims.Check("whichever bit of a head is turned, the frame is refused", EveryHeadBit());
  claims.Check("used handles and late pages are refused, duplicates not written", UsedAndLate());
  claims.Check("mapped pages are checked before and after the copy", WrongMappings());
  claims.Check("a block reused during the copy is never taken for whole", ReusedSource());
  return claims.ExitCode();
}

}  // namespace
}  // namespace margay

int main() { return margay::RunClaims(); }
