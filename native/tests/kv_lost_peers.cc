// What a receiver makes of peers that die or stop in the middle.
//   kv_lost_peers                                                   the claims
//   kv_lost_peers half-page <port> <slot> <generation> <die|stop>   a peer that sends half a page, then dies or stops
//   kv_lost_peers sender <port> <slot> <generation> <shm|tcp>       a prefill side, stopped with half its pages sent
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "claim.h"
#include "kv_sides.h"
#include "raw_peer.h"
#include "stage.h"

namespace margay {
namespace {

constexpr int kSenderTokens = 256;

// Another process of this program. Ends it, if it still runs.
class Child {
 public:
  explicit Child(std::vector<std::string> arguments) {
    std::vector<char*> pointers;
    arguments.insert(arguments.begin(), "/proc/self/exe");
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      execv(pointers[0], pointers.data());
      _exit(127);
    }
  }
  ~Child() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  bool Stopped() {
    int status = 0;
    return waitpid(pid_, &status, WUNTRACED) == pid_ && WIFSTOPPED(status);
  }
  void Continue() { kill(pid_, SIGCONT); }
  int Wait() {
    int status = 0;
    waitpid(std::exchange(pid_, 0), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = 0;
};

Child HalfPage(const Stage& stage, const std::string& then) {
  return Child({"half-page", std::to_string(stage.decoder.receiver->port()), std::to_string(stage.sequence.slot),
                std::to_string(stage.sequence.generation), then});
}

// A good transfer beside whatever else goes on.
std::string OthersAreServed(Decoder& decoder, SequenceRef there) {
  Finding finding;
  Prefiller prefiller;
  const auto tokens = TokensFrom(70'000, 300);
  const SequenceKvId received = decoder.Expect(there, tokens);
  const SequenceKvId sent = prefiller.Open(tokens);
  Must(prefiller.sender->Begin({1, 1}, sent, 300, decoder.Target(there, false)));
  prefiller.Compute({1, 1}, sent, 5, tokens, 0, 300);
  finding.Same("cause", decoder.outcomes.Of(there).cause, "");
  finding.Same("rows", decoder.Compare(received, 5, 0, 300), "");
  prefiller.outcomes.Of({1, 1});
  prefiller.pool->Close(sent, true);
  decoder.Drop(there, received);
  return finding.what();
}

std::string KilledInMidPage() {
  Finding finding;
  Stage stage;
  Child child = HalfPage(stage, "die");
  finding.Same("the peer's end", child.Wait(), 128 + SIGKILL);
  finding.Expect(Eventually([&] { return stage.Refused(FrameRefusal::kTruncated) == 1; }),
                 "the cut page was not counted");
  finding.Same("pool", stage.UntouchedBut(0, 2), "");
  finding.Same("others", OthersAreServed(stage.decoder, {9, 9}), "");
  stage.decoder.Drop(stage.sequence, stage.id);
  finding.Same("decode pool", stage.decoder.AtRest(), "");
  return finding.what();
}

// Stopped with half a page sent, its sequence forgotten, the blocks given to somebody else, then continued.
std::string StoppedThenContinued() {
  Finding finding;
  Stage stage;
  Child child = HalfPage(stage, "stop");
  finding.Expect(child.Stopped(), "the peer did not stop");
  finding.Expect(Eventually([&] { return stage.decoder.receiver->counters().pages == 1; }),
                 "its first page did not come");
  finding.Same("others, while it is stopped", OthersAreServed(stage.decoder, {9, 9}), "");

  const int blocks = stage.decoder.pool->memory().blocks;
  stage.decoder.Drop(stage.sequence, stage.id);
  // Everything is somebody else's now, and their rows are known.
  const auto tokens = TokensFrom(500'000, blocks * kBlockTokens);
  const SequenceKvId other = Must(stage.decoder.pool->Open(tokens, blocks * kBlockTokens, KvUse::kCompute)).id;
  for (int attention = 0; attention < 3; ++attention)
    stage.decoder.Write(other, 8, attention, 0, blocks * kBlockTokens);
  child.Continue();
  finding.Same("what the continued peer heard (0: stale_handle twice)", child.Wait(), 0);
  finding.Same("refused", stage.Refused(FrameRefusal::kStaleHandle), uint64_t{2});
  finding.Same("rows of the new owner", stage.decoder.Compare(other, 8, 0, blocks * kBlockTokens), "");
  stage.decoder.pool->Close(other, false);
  finding.Same("decode pool", stage.decoder.AtRest(), "");
  return finding.what();
}

// A whole prefill side, stopped with half of its pages sent.
std::string StoppedSender(bool shared_memory) {
  Finding finding;
  Decoder decoder;
  const SequenceRef there{6, 3};
  const SequenceKvId id = decoder.Expect(there, TokensFrom(0, kSenderTokens));
  Child child({"sender", std::to_string(decoder.receiver->port()), std::to_string(there.slot),
               std::to_string(there.generation), shared_memory ? "shm" : "tcp"});
  finding.Expect(child.Stopped(), "the sender did not stop");
  finding.Expect(Eventually([&] { return decoder.receiver->counters().pages == 6; }), "its first pages did not come");
  decoder.Drop(there, id);
  const int blocks = decoder.pool->memory().blocks;
  const auto tokens = TokensFrom(500'000, blocks * kBlockTokens);
  const SequenceKvId other = Must(decoder.pool->Open(tokens, blocks * kBlockTokens, KvUse::kCompute)).id;
  for (int attention = 0; attention < 3; ++attention) decoder.Write(other, 8, attention, 0, blocks * kBlockTokens);
  child.Continue();
  finding.Same("the continued sender's end (0: stale_handle, its pool at rest)", child.Wait(), 0);
  finding.Same("rows of the new owner", decoder.Compare(other, 8, 0, blocks * kBlockTokens), "");
  decoder.pool->Close(other, false);
  finding.Same("decode pool", decoder.AtRest(), "");
  return finding.what();
}

int RunSender(int port, SequenceRef there, bool shared_memory) {
  Prefiller prefiller;
  const auto tokens = TokensFrom(0, kSenderTokens);
  const SequenceKvId id = prefiller.Open(tokens);
  Must(prefiller.sender->Begin({0, 0}, id, kSenderTokens,
                               {"127.0.0.1", port, shared_memory, kTestEpoch, there, 0, NowMs() + kFarMs}));
  prefiller.Compute({0, 0}, id, 1, tokens, 0, kSenderTokens / 2);
  if (!Eventually([&] { return prefiller.sender->counters().pages == 6; })) return 10;
  raise(SIGSTOP);
  prefiller.Compute({0, 0}, id, 1, tokens, kSenderTokens / 2, kSenderTokens);
  prefiller.pool->Close(id, true);
  if (prefiller.outcomes.Of({0, 0}).cause != "stale_handle") return 11;
  return prefiller.AtRest().empty() ? 0 : 12;
}

// One whole page, half of the next; then the end, or a stop and the other half and one page more.
int RunHalfPage(int port, SequenceRef sequence, bool die) {
  RawPeer peer = RawPeer::Tcp(port);
  peer.Greet();
  if (peer.Heard() != "welcome") return 10;
  const auto payload = PayloadOf(64, 1);
  if (!die) {
    peer.Send(PageOf(sequence, 0, 1, 64, payload), payload);
    if (peer.Heard() != "ack") return 11;
  }
  const size_t half = payload.size() / 2;
  peer.Send(PageOf(sequence, 0, 2, 64, payload));
  peer.Send(payload.data(), half);
  if (die) {
    // The kernel delivers what was sent before the end.
    kill(getpid(), SIGKILL);
  }
  raise(SIGSTOP);
  peer.Send(payload.data() + half, payload.size() - half);
  if (peer.Heard() != "stale_handle") return 12;
  peer.Send(PageOf(sequence, 1, 1, 64, payload), payload);
  return peer.Heard() == "stale_handle" ? 0 : 13;
}

int RunClaims() {
  Claims claims;
  claims.Check("a peer killed in mid page leaves nothing behind", KilledInMidPage());
  claims.Check("a peer stopped in mid page, then continued, writes into nobody's block", StoppedThenContinued());
  claims.Check("a stopped sender, continued, writes into nobody's block over shared memory", StoppedSender(true));
  claims.Check("a stopped sender, continued, writes into nobody's block over tcp", StoppedSender(false));
  return claims.ExitCode();
}

}  // namespace
}  // namespace margay

int main(int argc, char** argv) {
  using namespace margay;
  const std::string what = argc > 1 ? argv[1] : "";
  if (argc != 6) return RunClaims();
  const int port = std::atoi(argv[2]);
  const SequenceRef sequence{std::atoi(argv[3]), std::atoi(argv[4])};
  const std::string how = argv[5];
  return what == "sender" ? RunSender(port, sequence, how == "shm") : RunHalfPage(port, sequence, how == "die");
}
