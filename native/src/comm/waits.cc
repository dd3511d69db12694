// How a rank waits for its peers, and how it finds out who is to blame when they do not come.
#include <algorithm>
#include <ctime>

#include "comm/rank_exchange.h"
#include "core/trace.h"

namespace margay {
namespace {

// Longest sleep without a look at what may have ended the group meanwhile.
constexpr auto kLook = std::chrono::milliseconds(10);

uint32_t Packed(const GroupLoss& loss) { return static_cast<uint32_t>(loss.cause) << 16 | static_cast<uint32_t>(loss.guilty + 2); }

GroupLoss Unpacked(uint32_t word) {
  return {static_cast<int>(word & 0xffff) - 2, static_cast<LossCause>(std::min<uint32_t>(word >> 16, kLossCauses - 1))};
}

}  // namespace

Status RankExchange::LostStatus() const {
  const GroupLoss why = loss();
  const std::string who = why.guilty < 0 ? "" : ", member " + std::to_string(why.guilty);
  return {Code::kGroupLost, "the group of epoch " + std::to_string(spec_.epoch) + " is lost: " + LossCauseName(why.cause) + who};
}

Status RankExchange::Lost(GroupLoss loss) {
  Lose(loss);
  return LostStatus();
}

void RankExchange::Lose(GroupLoss loss) {
  {
    const std::lock_guard lock(mutex_);
    if (lost_.load(std::memory_order_relaxed)) return;
    loss_ = loss;
    own_.head()->left.store(Packed(loss), std::memory_order_release);
    lost_.store(true, std::memory_order_release);
  }
  for (Lane* lane : lanes_) {
    if (lane != nullptr) lane->Left();
  }
  WakeWaiters();
  const std::lock_guard lock(events_mutex_);
  if (events_.lost) events_.lost();
}

void RankExchange::Leave() {
  {
    const std::lock_guard lock(events_mutex_);
    events_ = {};
  }
  Lose({self(), LossCause::kLeft});
}

void RankExchange::PeerMoved() {
  if (!lost_.load(std::memory_order_acquire)) {
    if (const std::optional<GroupLoss> told = ToldLoss()) Lose(*told);
  }
  if (own_.head()->resting.load(std::memory_order_seq_cst) == 0 || !PeerBegan()) return;
  const std::lock_guard lock(events_mutex_);
  if (events_.peer_began) events_.peer_began();
}

// Whoever sleeps on a word of this rank or, in this process, on one of a peer's. One that goes to sleep right now looks
// again soon.
void RankExchange::WakeWaiters() const {
  const auto wake = [](const MailboxHead* head) {
    for (const auto* word : {&head->begun, &head->dispatched, &head->combined}) WakeAll(word);
  };
  wake(own_.head());
  for (const Lane* lane : lanes_) {
    if (lane != nullptr) wake(lane->theirs().head());
  }
}

GroupLoss RankExchange::loss() const {
  const std::lock_guard lock(mutex_);
  return loss_;
}

const std::atomic<uint32_t>* RankExchange::Word(int member, Waiting::For what) const {
  const MailboxHead* head = member == self() ? own_.head() : lanes_[static_cast<size_t>(member)]->theirs().head();
  switch (what) {
    case Waiting::For::kNothing:
    case Waiting::For::kBegin: return &head->begun;
    case Waiting::For::kDispatch: return &head->dispatched;
    case Waiting::For::kCombine: return &head->combined;
  }
  return &head->begun;
}

bool RankExchange::Here(const Waiting& waiting) const {
  return Reached(Word(waiting.member, waiting.what)->load(std::memory_order_acquire), waiting.number);
}

bool RankExchange::AllHere(Waiting::For what, const std::vector<uint8_t>* needed) {
  for (int member = 0; member < members(); ++member) {
    const bool counts = member != self() && (needed == nullptr || (*needed)[static_cast<size_t>(member)] != 0);
    if (counts && !Here({what, member, number_})) return false;
  }
  return !link_ || MonotonicNs() >= LinkArrivalNs(what, needed);
}

// A member that left knows who was to blame.
std::optional<GroupLoss> RankExchange::ToldLoss() const {
  for (const Lane* lane : lanes_) {
    const uint32_t left = lane == nullptr ? 0 : lane->theirs().head()->left.load(std::memory_order_acquire);
    if (left == 0) continue;
    const GroupLoss told = Unpacked(left);
    if (told.guilty < members()) return told;
  }
  return std::nullopt;
}

// Whoever is late may itself wait for somebody. A wait that is over in the eyes of this rank counts for nothing: who has
// what it waited for and does not go on is to blame.
int RankExchange::Guilty(Waiting waiting) const {
  int guilty = waiting.member;
  for (int hop = 1; hop < members() && guilty != self(); ++hop) {
    const MailboxHead* head = lanes_[static_cast<size_t>(guilty)]->theirs().head();
    const Waiting next = Waiting::Unpack(head->waiting.load(std::memory_order_acquire));
    const bool waits = next.what != Waiting::For::kNothing && next.member < members() && next.member != guilty && !Here(next);
    if (!waits) return guilty;
    guilty = next.member;
  }
  return guilty == self() ? waiting.member : guilty;
}

Status RankExchange::Await(const Waiting& waiting, WaitClock::time_point deadline) {
  const auto here = [&] { return Here(waiting); };
  if (here() || SpinBriefly(here)) return Status::Ok();
  const std::atomic<uint32_t>* word = Word(waiting.member, waiting.what);
  own_.head()->waiting.store(waiting.Pack(), std::memory_order_release);
  auto tell_at = deadline - this->deadline() / 2;
  Status outcome;
  while (true) {
    const uint32_t seen = word->load(std::memory_order_acquire);
    if (Reached(seen, waiting.number)) break;
    if (const std::optional<GroupLoss> told = ToldLoss()) Lose(*told);
    const auto now = WaitClock::now();
    if (now >= deadline) Lose({Guilty(waiting), LossCause::kDeadline});
    if (lost_.load(std::memory_order_acquire)) {
      outcome = LostStatus();
      break;
    }
    if (now >= tell_at) {
      tell_at = deadline;
      for (Lane* lane : lanes_) {
        if (lane != nullptr) lane->WaitsLong();
      }
    }
    SleepOn(word, seen, std::min(deadline, now + kLook));
  }
  own_.head()->waiting.store(0, std::memory_order_release);
  return outcome;
}

int64_t RankExchange::LinkArrivalNs(Waiting::For what, const std::vector<uint8_t>* needed) {
  if (carried_.what == what && carried_.number == number_) return carried_ns_;
  carried_ = {what, self(), number_};
  carried_ns_ = 0;
  arrivals_.clear();
  for (int member = 0; member < members(); ++member) {
    if (member == self() || (needed != nullptr && (*needed)[static_cast<size_t>(member)] == 0)) continue;
    const Mailbox& theirs = lanes_[static_cast<size_t>(member)]->theirs();
    if (what == Waiting::For::kDispatch) {
      const ListHead head = *theirs.list_head(number_, self());
      arrivals_.emplace_back(theirs.head()->dispatched_ns.load(std::memory_order_relaxed),
                             head.entries * kChoiceBytes + head.rows * PayloadBytes(spec_.payload, spec_.hidden));
    } else {
      arrivals_.emplace_back(theirs.head()->combined_ns.load(std::memory_order_relaxed),
                             theirs.result_head(self())->rows * ResultBytes(spec_.payload, spec_.hidden));
    }
  }
  std::sort(arrivals_.begin(), arrivals_.end());
  for (const auto& [sent_ns, bytes] : arrivals_) {
    const int64_t leaves_ns = std::max(sent_ns, link_->free_ns());
    carried_ns_ = link_->Carry(sent_ns, bytes);
    trace::Tell(what == Waiting::For::kDispatch ? "dispatch on the link" : "combine on the link", leaves_ns, carried_ns_);
  }
  return carried_ns_;
}

void RankExchange::HoldForLink(Waiting::For what, const std::vector<uint8_t>* needed, WaitClock::time_point deadline) {
  const int64_t last_ns = LinkArrivalNs(what, needed);
  const auto over = [&] { return MonotonicNs() >= last_ns || lost_.load(std::memory_order_acquire); };
  constexpr int64_t kSpinNs = 100'000;
  const timespec until{static_cast<time_t>((last_ns - kSpinNs) / 1'000'000'000), static_cast<long>((last_ns - kSpinNs) % 1'000'000'000)};
  if (!over() && last_ns > kSpinNs) clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
  while (!over() && WaitClock::now() < deadline) PauseCore();
}

Status RankExchange::AwaitAll(Waiting::For what, uint32_t number, const std::vector<uint8_t>* needed,
                              uint64_t ExchangeCounters::*waited) {
  const auto start = WaitClock::now();
  Status outcome;
  for (int member = 0; member < members() && outcome.ok(); ++member) {
    if (member == self() || (needed != nullptr && (*needed)[static_cast<size_t>(member)] == 0)) continue;
    outcome = Await({what, member, number}, start + deadline());
  }
  if (outcome.ok() && link_ && what != Waiting::For::kBegin) HoldForLink(what, needed, start + deadline());
  const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(WaitClock::now() - start).count();
  const std::lock_guard lock(mutex_);
  counters_.*waited += static_cast<uint64_t>(ns);
  return outcome;
}

}  // namespace margay
