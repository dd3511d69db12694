// What a group makes of a member that is killed, stopped, slow or cut off in the middle of a layer: the others leave in
// time and name it, nothing of it is taken afterwards, and those that live can form the next group.
#include <sys/socket.h>

#include <filesystem>

#include "rank_processes.h"

namespace margay {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kDeadlineMs = 1'500;
constexpr int kVictim = 1;
constexpr int64_t kOverrunMs = 2'000;  // promised: everybody is out so long after the deadline

enum class Phase { kDispatch, kExperts, kCombine };
enum class Fall { kKilled, kStopped, kSlow, kCut };

// All connections of this process end, as when the network is gone.
void CutConnections() {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::atoi(entry.path().filename().c_str());
    sockaddr_storage peer{};
    socklen_t bytes = sizeof peer;
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &bytes) != 0) continue;
    // Not what it prints to, which may be a socket as well.
    if (peer.ss_family == AF_INET || peer.ss_family == AF_INET6) shutdown(fd, SHUT_RDWR);
  }
}

void FallDown(Fall fall) {
  switch (fall) {
    case Fall::kKilled: raise(SIGKILL); break;
    case Fall::kStopped: raise(SIGSTOP); break;
    case Fall::kSlow: std::this_thread::sleep_for(std::chrono::milliseconds(2 * kDeadlineMs)); break;
    case Fall::kCut: CutConnections(); break;
  }
}

struct Outcome {
  Status status;
  int64_t ms = 0;  // of the call that failed
};

// Layers until a call fails; in the fifth, `fall` is called at its place.
Outcome RunUntilLost(const GroupSpec& spec, ExpertExchange* exchange, Phase phase, const std::function<void()>& fall) {
  Clock::time_point start;
  const auto lost = [&](const Status& status) {
    return Outcome{status, std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count()};
  };
  const auto timed = [&](const auto& call) {
    start = Clock::now();
    return call();
  };
  std::span<const ReceivedRow> received;
  for (int layer = 0; layer < 1'000'000; ++layer) {
    const RowsOf mine = MakeRows(spec, 5, static_cast<uint64_t>(layer * 10 + spec.self));
    const auto at = [&](Phase place) {
      if (layer == 4 && phase == place && fall) fall();
    };
    if (layer % 2 == 0) {
      if (Status s = timed([&] { return exchange->BeginStep(); }); !s.ok()) return lost(s);
    }
    at(Phase::kDispatch);
    mine.PutInto(exchange, spec.hidden);
    if (Status s = timed([&] { return exchange->DispatchSend(layer % 2, mine.Dispatch()); }); !s.ok()) return lost(s);
    if (Status s = timed([&] { return exchange->DispatchReceive(layer % 2, &received); }); !s.ok()) return lost(s);
    at(Phase::kExperts);
    ComputeExperts(spec, received, exchange);
    if (Status s = timed([&] { return exchange->CombineSend(layer % 2); }); !s.ok()) return lost(s);
    at(Phase::kCombine);
    if (Status s = timed([&] { return exchange->CombineReceive(layer % 2); }); !s.ok()) return lost(s);
  }
  return {};
}

// Empty when the group was lost as it should be, and nothing works any more.
std::string CheckLoss(const Outcome& outcome, ExpertExchange* exchange, Fall fall) {
  Finding finding;
  finding.Same("the code", std::string(CodeName(outcome.status.code())), "group_lost");
  finding.Expect(outcome.ms <= kDeadlineMs + kOverrunMs, "out after " + std::to_string(outcome.ms) + " ms");
  // Of a broken connection each end blames the other, and both are heard.
  if (fall != Fall::kCut) finding.Same("the guilty member", exchange->loss().guilty, kVictim);
  const bool gone = fall == Fall::kKilled || fall == Fall::kCut;
  finding.Same("the cause", std::string(LossCauseName(exchange->loss().cause)), gone ? "connection" : "deadline");
  const Clock::time_point start = Clock::now();
  finding.Expect(!exchange->BeginStep().ok() && !exchange->Rest(), "a lost group goes on");
  finding.Expect(Clock::now() - start < std::chrono::milliseconds(kDeadlineMs), "a lost group waits");
  return finding.what();
}

GroupSpec Hosts(const std::string& hosts) {
  GroupSpec spec = SmallSpec(static_cast<int>(hosts.size()));
  for (size_t member = 0; member < hosts.size(); ++member) spec.members[member].host_key = std::string(1, hosts[member]);
  spec.secret = "secret";
  spec.deadline_ms = kDeadlineMs;
  spec.join_deadline_ms = 30'000;
  return spec;
}

std::string Member(const GroupSpec& spec, ExchangeEndpoint* endpoint, Phase phase, Fall fall) {
  auto exchange = endpoint->Join(spec, {});
  if (!exchange.ok()) return exchange.status().message();
  const bool victim = spec.self == kVictim;
  const Outcome outcome = RunUntilLost(spec, exchange->get(), phase, victim ? [fall] { FallDown(fall); } : std::function<void()>());
  return CheckLoss(outcome, exchange->get(), fall);
}

// The same fall in all phases at once, in groups of their own.
std::string Falls(const std::string& hosts, Fall fall) {
  Finding finding;
  std::vector<RankProcesses> groups;
  for (const Phase phase : {Phase::kDispatch, Phase::kExperts, Phase::kCombine}) {
    groups.emplace_back(Hosts(hosts), [=](const GroupSpec& spec, ExchangeEndpoint* endpoint) { return Member(spec, endpoint, phase, fall); });
  }
  for (size_t phase = 0; phase < groups.size(); ++phase) {
    const std::string name = hosts + ", phase " + std::to_string(phase) + ": ";
    for (const int member : {0, 2}) {
      const std::string found = groups[phase].Found(member);
      finding.Expect(found.empty(), name + found);
    }
    if (fall == Fall::kStopped) kill(groups[phase].pid(kVictim), SIGCONT);
    const std::string found = groups[phase].Found(kVictim);
    finding.Same(name + "the victim", found, fall == Fall::kKilled ? "ended with signal 9" : "");
  }
  return finding.what();
}

// Members 0 and 2 go on as members 0 and 1 of the next group; the one that was stopped comes back and tries its old one.
std::string Survivor(const GroupSpec& old, ExchangeEndpoint* endpoint) {
  const std::string lost = Member(old, endpoint, Phase::kExperts, Fall::kStopped);
  if (!lost.empty()) return lost;
  GroupSpec spec = old;
  spec.epoch = old.epoch + 1;
  if (old.self == kVictim) {
    const auto late = endpoint->Join(old, {});
    const std::string told = late.ok() ? "joined" : late.status().message();
    return told.find("stale_epoch") == std::string::npos ? "the late member heard: " + told : "";
  }
  spec.members = {old.members[0], old.members[2]};
  spec.self = old.self == 0 ? 0 : 1;
  spec.owners = DealtOut(10, 2);
  auto exchange = endpoint->Join(spec, {});
  if (!exchange.ok()) return exchange.status().message();
  if (spec.self == 0) kill(getppid(), SIGUSR1);  // the group stands: let the stopped member go on
  const auto until = Clock::now() + std::chrono::milliseconds(kRankPatienceMs / 2);
  for (int step = 0; Clock::now() < until; ++step) {
    std::vector<float> out;
    if (Status began = (*exchange)->BeginStep(); !began.ok()) return spec.self == 0 ? began.message() : "";
    const RowsOf mine = MakeRows(spec, 6, static_cast<uint64_t>(step));
    if (Status ran = RunLayer(spec, exchange->get(), 0, mine, &out); !ran.ok()) return spec.self == 0 ? ran.message() : "";
    if (ErrorOf(PlainLayer(spec, mine), out) > 1.0 / 128) return "wrong results in the new group";
    if (spec.self == 0 && endpoint->refused()[static_cast<size_t>(GreetingRefusal::kStaleEpoch)] > 0) return "";
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return "the late member was not refused";
}

std::string NextGroup(const std::string& hosts) {
  sigset_t waited;
  sigemptyset(&waited);
  sigaddset(&waited, SIGUSR1);
  sigprocmask(SIG_BLOCK, &waited, nullptr);
  RankProcesses ranks(Hosts(hosts), Survivor);
  const timespec patience{kRankPatienceMs / 1000, 0};
  const bool stands = sigtimedwait(&waited, nullptr, &patience) == SIGUSR1;
  kill(ranks.pid(kVictim), SIGCONT);
  const std::string found = ranks.Found();
  return stands || !found.empty() ? found : "the next group was not formed";
}

int Run() {
  Claims claims;
  struct Way {
    Fall fall;
    const char* name;
  };
  for (const Way& way : {Way{Fall::kKilled, "killed"}, Way{Fall::kStopped, "stopped"}, Way{Fall::kSlow, "slow"}}) {
    for (const std::string hosts : {"aaa", "abc"}) {
      claims.Check(std::string("the others leave a ") + way.name + " member in time, " + (hosts == "aaa" ? "shared memory" : "TCP"), Falls(hosts, way.fall));
    }
  }
  claims.Check("the others leave a member that is cut off in time, TCP", Falls("abc", Fall::kCut));
  claims.Check("the next group forms without a stopped member and refuses it afterwards, shared memory", NextGroup("aaa"));
  claims.Check("the next group forms without a stopped member and refuses it afterwards, TCP", NextGroup("abc"));
  return claims.ExitCode();
}

}  // namespace
}  // namespace margay

int main() { return margay::Run(); }
