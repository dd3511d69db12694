#include "comm/endpoint.h"

#include <algorithm>
#include <thread>

#include "comm/meeting.h"
#include "comm/rank_exchange.h"
#include "comm/socket_lane.h"
#include "core/thread_name.h"

namespace margay {
namespace {

// A member that is a process: its lanes, and the thread that moves what they carry and hears who is gone.
class ProcessExchange : public RankExchange {
 public:
  ProcessExchange(const GroupSpec& spec, SealedMemory outbox, Door* door, GroupEvents events)
      : RankExchange(spec, outbox.base(), std::move(events)),
        outbox_(std::move(outbox)),
        rules_(spec),
        reception_(door, &rules_) {}
  ~ProcessExchange() override;

  Status Meet(Door* door);

 private:
  // Longest time for the last words to the others, and for their hearing them.
  static constexpr int64_t kLastWordsMs = 200;
  static constexpr int64_t kHearingMs = 100;

  int PeerOf(size_t lane) const { return static_cast<int>(lane) + (static_cast<int>(lane) < self() ? 0 : 1); }
  void Progress();
  void ServeLanes(std::span<const pollfd> polled);
  void SayGoodbye();

  const SealedMemory outbox_;
  const GreetingRules rules_;
  Reception reception_;
  std::vector<std::optional<SealedMemory>> mapped_;
  std::vector<MailboxMemory> copies_;
  std::vector<std::unique_ptr<SocketLane>> lanes_;
  Doorbell doorbell_;
  std::atomic<bool> leaving_{false};
  std::thread progress_;
};

Status ProcessExchange::Meet(Door* door) {
  Meeting meeting(spec(), layout(), rules_, door, outbox_.fd());
  if (Status met = meeting.Run(); !met.ok()) return met;
  std::vector<Lane*> lanes;
  int peer = 0;
  for (Met& met : meeting.Take()) {
    if (peer == self()) {
      lanes.push_back(nullptr);
    } else {
      const bool carries = !met.outbox;
      std::byte* theirs = nullptr;
      if (carries) {
        Result<MailboxMemory> copy = MailboxMemory::Create(layout());
        if (!copy.ok()) return copy.status();
        theirs = copy->base();
        copies_.push_back(std::move(*copy));
      } else {
        theirs = met.outbox->base();
        mapped_.push_back(std::move(met.outbox));
      }
      const SocketLane::Sides sides{&spec(), &layout(), own(), Mailbox(theirs, &layout()), carries};
      lanes_.push_back(std::make_unique<SocketLane>(peer, std::move(met.fd), sides, [this] { doorbell_.Ring(); }));
      lanes.push_back(lanes_.back().get());
    }
    ++peer;
  }
  SetLanes(std::move(lanes));
  if (!lanes_.empty()) progress_ = std::thread([this] { Progress(); });
  return Status::Ok();
}

ProcessExchange::~ProcessExchange() {
  Leave();
  leaving_.store(true, std::memory_order_release);
  doorbell_.Ring();
  if (progress_.joinable()) progress_.join();
}

void ProcessExchange::Progress() {
  NameThread("margay-comm");
  std::vector<pollfd> polled;
  while (!leaving_.load(std::memory_order_acquire)) {
    polled.assign(1, {doorbell_.fd(), POLLIN, 0});
    for (const auto& lane : lanes_) polled.push_back({lane->over() ? -1 : lane->fd(), lane->Events(), 0});
    reception_.AddPolled(&polled);
    PollUntil(polled, reception_.NextDeadline());
    if (polled[0].revents != 0) doorbell_.Hush();
    ServeLanes(std::span(polled).subspan(1));
    reception_.Serve(std::span(polled).subspan(lanes_.size() + 1), NowMs(),
                     [](Reception::Guest*) { return GreetingRefusal::kDuplicate; });
  }
  SayGoodbye();
}

void ProcessExchange::ServeLanes(std::span<const pollfd> polled) {
  for (size_t i = 0; i < lanes_.size(); ++i) {
    bool news = false;
    const std::optional<LossCause> lost = lanes_[i]->Serve(polled[i].revents, &news);
    // What it said last counts before its silence.
    if (news || lost) PeerMoved();
    if (lost) Lose({PeerOf(i), *lost});
  }
}

// A connection that is closed with something unread takes the last words with it: waits until they are heard.
void ProcessExchange::SayGoodbye() {
  const auto poll_lanes = [&](int64_t until_ms) {
    std::vector<pollfd> polled;
    for (const auto& lane : lanes_) polled.push_back({lane->over() ? -1 : lane->fd(), lane->Events(), 0});
    PollUntil(polled, until_ms);
    return polled;
  };
  const int64_t said_ms = NowMs() + kLastWordsMs;
  const auto all = [&](auto&& is) { return std::all_of(lanes_.begin(), lanes_.end(), is); };
  while (!all([](const auto& lane) { return lane->over() || lane->Sent(); }) && NowMs() < said_ms) ServeLanes(poll_lanes(said_ms));
  for (const auto& lane : lanes_) lane->Shut();
  const int64_t heard_ms = NowMs() + kHearingMs;
  while (!all([](const auto& lane) { return lane->over(); }) && NowMs() < heard_ms) {
    poll_lanes(heard_ms);
    for (const auto& lane : lanes_) lane->Discard();
  }
}

class Endpoint : public ExchangeEndpoint {
 public:
  explicit Endpoint(std::unique_ptr<Door> door) : door_(std::move(door)) {}
  int port() const override { return door_->port; }
  void StopJoining() override { door_->stop.Ring(); }
  Result<std::unique_ptr<ExpertExchange>> Join(const GroupSpec& spec, GroupEvents events) override {
    if (Status checked = spec.Check(); !checked.ok()) return checked;
    Result<SealedMemory> outbox = SealedMemory::Create("margay-experts", MailboxLayout(spec).bytes());
    if (!outbox.ok()) return outbox.status();
    auto exchange = std::make_unique<ProcessExchange>(spec, std::move(*outbox), door_.get(), std::move(events));
    if (Status met = exchange->Meet(door_.get()); !met.ok()) return met;
    return std::unique_ptr<ExpertExchange>(std::move(exchange));
  }
  GreetingRefusals refused() const override {
    const std::lock_guard lock(door_->mutex);
    return door_->refused;
  }

 private:
  const std::unique_ptr<Door> door_;
};

}  // namespace

Result<std::unique_ptr<ExchangeEndpoint>> ExchangeEndpoint::Open(const std::string& host, int port) {
  auto door = std::make_unique<Door>();
  Result<Address> address = TcpAddress(host, port);
  if (!address.ok()) return address.status();
  Result<Fd> tcp = Listen(*address);
  if (!tcp.ok()) return tcp.status();
  door->tcp = std::move(*tcp);
  door->port = PortOf(door->tcp);
  Result<Fd> local = Listen(UnixBeside(door->port));
  if (!local.ok()) return local.status();
  door->local = std::move(*local);
  return std::unique_ptr<ExchangeEndpoint>(std::make_unique<Endpoint>(std::move(door)));
}

}  // namespace margay
