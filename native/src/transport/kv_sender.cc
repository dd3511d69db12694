// The prefill side's end: one thread that announces pages and waits for answers.
#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "core/thread_name.h"
#include "core/trace.h"
#include "transport/kv_transfer.h"
#include "transport/link.h"
#include "transport/outgoing.h"
#include "core/tls.h"

namespace margay {
namespace {

constexpr size_t kMaxSequences = 4096;
constexpr int kReconnects = 2;       // per sequence
constexpr int64_t kIdleMs = 60'000;  // then a connection without sequences is closed
constexpr size_t kMaxIdleLinks = 64;
// Each wake-up of this thread and of the peer's takes a core from the model: fewer bytes than this wait for the next
// attention, at the latest for the last one of the step.
constexpr size_t kWorthWaking = 256 * 1024;
constexpr int64_t kStuckMs = 2'000;  // a link without an answer for so long is given up when a deadline passes on it

class Sender final : public KvSender {
 public:
  Sender(KvPool* pool, const std::string& model_hash, const TlsFiles& tls, OnTransfer on_transfer)
      : pool_(pool),
        hello_(HelloText(pool->memory().layout, model_hash)),
        tls_(tls),
        on_transfer_(std::move(on_transfer)),
        thread_([this] { Run(); }) {}

  ~Sender() override {
    stopping_ = true;
    bell_.Ring();
    thread_.join();
    for (const auto& [key, outgoing] : active_) pool_->EndFlight(outgoing->Unreleased(), Flight::kOut);
  }

  Status Begin(SequenceRef sequence, SequenceKvId kv, int tokens, const SendTarget& target) override;
  void Written(SequenceRef sequence, int attention, int length) override;
  void Abort(SequenceRef sequence) override;
  TransferCounters counters() const override {
    std::lock_guard lock(mutex_);
    return counters_;
  }

 private:
  using Key = std::pair<int32_t, int32_t>;
  static Key KeyOf(SequenceRef sequence) { return {sequence.slot, sequence.generation}; }

  void Run();
  void TakeNews();
  void Drive(Link& link, int64_t now, short revents);
  void OnAnswer(const Link::Answer& answer);
  void OnBroken(Link& link, int64_t now);
  void Expire(int64_t now);
  void Finish(Outgoing& outgoing, const std::string& cause);
  Link& LinkTo(const SendTarget& target);
  void DropIdle(int64_t now);
  int64_t NextDeadline() const;

  KvPool* const pool_;
  const std::string hello_;
  const TlsFiles tls_;
  const OnTransfer on_transfer_;
  Doorbell bell_;
  std::atomic<bool> stopping_{false};

  mutable std::mutex mutex_;
  std::map<Key, std::shared_ptr<Outgoing>> active_;  // changed by Begin and by the thread
  std::vector<std::shared_ptr<Outgoing>> begun_;     // not yet on a link
  std::vector<std::shared_ptr<Outgoing>> news_;      // written or aborted since the thread last looked
  bool rung_ = false;
  size_t quiet_bytes_ = 0;  // written since the bell rang for pages
  TransferCounters counters_;

  std::vector<std::unique_ptr<Link>> links_;  // of the thread
  std::thread thread_;                        // last: it uses all of the above
};

Status Sender::Begin(SequenceRef sequence, SequenceKvId kv, int tokens, const SendTarget& target) {
  if (target.cached_tokens < 0 || tokens <= target.cached_tokens) {
    return {Code::kBadArgument, "pages are sent for at least one token"};
  }
  const Result<Address> address = TcpAddress(target.host, target.port);
  if (!address.ok()) return address.status();
  const int first = target.cached_tokens / kBlockTokens;
  const int count = (tokens + kBlockTokens - 1) / kBlockTokens - first;

  std::lock_guard lock(mutex_);
  if (active_.contains(KeyOf(sequence))) return {Code::kBadState, "the sequence is being sent already"};
  if (active_.size() >= kMaxSequences) return {Code::kQueueFull, "too many sequences are being sent"};
  Result<std::vector<BlockLease>> leases = pool_->StartFlight(kv, first, count, Flight::kOut);
  if (!leases.ok()) return leases.status();
  auto outgoing = std::make_shared<Outgoing>(sequence, target, tokens, pool_->memory().layout, std::move(*leases));
  active_.emplace(KeyOf(sequence), outgoing);
  begun_.push_back(std::move(outgoing));
  bell_.Ring();
  return Status::Ok();
}

void Sender::Written(SequenceRef sequence, int attention, int length) {
  std::lock_guard lock(mutex_);
  const auto found = active_.find(KeyOf(sequence));
  if (found == active_.end() || attention < 0) return;
  Outgoing& outgoing = *found->second;
  if (static_cast<size_t>(attention) >= outgoing.written.size()) return;
  int& written = outgoing.written[static_cast<size_t>(attention)];
  if (length <= written) return;
  quiet_bytes_ += static_cast<size_t>(length - written) * pool_->memory().layout.row_bytes();
  written = length;
  if (!std::exchange(outgoing.listed, true)) news_.push_back(found->second);
  const bool last = static_cast<size_t>(attention) + 1 == outgoing.written.size();
  if (!last && quiet_bytes_ < kWorthWaking) return;
  quiet_bytes_ = 0;
  if (!std::exchange(rung_, true)) bell_.Ring();
}

void Sender::Abort(SequenceRef sequence) {
  std::lock_guard lock(mutex_);
  const auto found = active_.find(KeyOf(sequence));
  if (found == active_.end()) return;
  found->second->aborted = true;
  if (!std::exchange(found->second->listed, true)) news_.push_back(found->second);
  if (!std::exchange(rung_, true)) bell_.Ring();
}

void Sender::Run() {
  NameThread("margay-kv");
  BlockBrokenPipeSignal();
  std::vector<pollfd> polled;
  while (!stopping_) {
    polled.assign(1, {bell_.fd(), POLLIN, 0});
    for (const auto& link : links_) polled.push_back({link->fd(), link->Events(), 0});
    PollUntil(polled, NextDeadline());
    if (polled[0].revents != 0) bell_.Hush();
    const size_t known = links_.size();
    TakeNews();
    const int64_t now = NowMs();
    for (size_t i = 0; i < links_.size(); ++i) Drive(*links_[i], now, i < known ? polled[i + 1].revents : short{0});
    Expire(now);
    DropIdle(now);
  }
}

// What the engine said since the last turn.
void Sender::TakeNews() {
  std::vector<std::shared_ptr<Outgoing>> begun, aborted;
  {
    std::lock_guard lock(mutex_);
    rung_ = false;
    begun.swap(begun_);
    for (const auto& outgoing : news_) {
      outgoing->listed = false;
      outgoing->Refresh();
      if (outgoing->aborted) aborted.push_back(outgoing);
    }
    news_.clear();
  }
  for (auto& outgoing : begun) LinkTo(outgoing->target).sequences.push_back(std::move(outgoing));
  for (const auto& outgoing : aborted) Finish(*outgoing, "aborted");
}

void Sender::Drive(Link& link, int64_t now, short revents) {
  std::vector<Link::Answer> answers;
  bool alive = link.Serve(now, revents, &answers);
  for (const Link::Answer& answer : answers) OnAnswer(answer);
  {
    const trace::Span span("send pages");
    alive = alive && link.Pump();
  }
  if (!alive) OnBroken(link, now);
}

void Sender::OnAnswer(const Link::Answer& answer) {
  Outgoing& outgoing = *answer.about.outgoing;
  const Outgoing::Page page = answer.about.page;
  {
    std::lock_guard lock(mutex_);
    if (answer.refusal) {
      ++counters_.refused[static_cast<size_t>(*answer.refusal)];
    } else {
      ++counters_.pages;
      counters_.bytes += answer.about.bytes;
    }
  }
  if (outgoing.over) return;
  if (answer.refusal) {
    const bool damaged = *answer.refusal == FrameRefusal::kChecksum || *answer.refusal == FrameRefusal::kTruncated;
    if (!damaged || !outgoing.Damaged(page)) Finish(outgoing, FrameRefusalName(*answer.refusal));
    return;
  }
  if (const auto lease = outgoing.Acknowledge(page, answer.about.bytes)) {
    pool_->EndFlight(std::span(&*lease, 1), Flight::kOut);
  }
  if (outgoing.complete()) Finish(outgoing, "");
}

void Sender::OnBroken(Link& link, int64_t now) {
  const bool was_open = link.state() == Link::State::kOpen;
  const bool incompatible = link.incompatible();
  link.Break(now);
  const auto sequences = link.sequences;  // Finish takes them off the link
  for (const auto& outgoing : sequences) {
    if (incompatible) {
      Finish(*outgoing, FrameRefusalName(FrameRefusal::kIncompatible));
    } else if (++outgoing->reconnects > kReconnects) {
      Finish(*outgoing, was_open ? "connection" : "connect");
    }
  }
}

// Once per sequence; an empty cause is success.
void Sender::Finish(Outgoing& outgoing, const std::string& cause) {
  if (std::exchange(outgoing.over, true)) return;
  std::shared_ptr<Outgoing> kept;
  for (const auto& link : links_) link->Detach(outgoing);
  pool_->EndFlight(outgoing.Unreleased(), Flight::kOut);
  {
    std::lock_guard lock(mutex_);
    const auto found = active_.find(KeyOf(outgoing.sequence));
    kept = std::move(found->second);
    active_.erase(found);
  }
  on_transfer_(outgoing.Report(cause));
}

void Sender::Expire(int64_t now) {
  for (const auto& link : links_) {
    const auto sequences = link->sequences;
    bool late = false;
    for (const auto& outgoing : sequences) {
      if (now < outgoing->target.deadline_ms) continue;
      Finish(*outgoing, "deadline");
      late = true;
    }
    const bool stuck = link->state() == Link::State::kOpen && now - link->progress_ms() > kStuckMs;
    if (late && stuck) OnBroken(*link, now);
  }
}

Link& Sender::LinkTo(const SendTarget& target) {
  for (const auto& link : links_) {
    if (link->Serves(target)) return *link;
  }
  links_.push_back(std::make_unique<Link>(pool_, hello_, tls_, target));
  return *links_.back();
}

void Sender::DropIdle(int64_t now) {
  size_t idle = 0;
  std::erase_if(links_, [&](const auto& link) {
    if (!link->sequences.empty()) {
      link->idle_since_ms = now;
      return false;
    }
    return link->state() != Link::State::kOpen || now - link->idle_since_ms > kIdleMs || ++idle > kMaxIdleLinks;
  });
}

int64_t Sender::NextDeadline() const {
  int64_t next = -1;
  const auto consider = [&](int64_t deadline) {
    if (deadline >= 0 && (next < 0 || deadline < next)) next = deadline;
  };
  for (const auto& link : links_) {
    consider(link->NextDeadline());
    for (const auto& outgoing : link->sequences) consider(outgoing->target.deadline_ms);
    if (link->sequences.empty()) consider(link->idle_since_ms + kIdleMs);
  }
  return next;
}

}  // namespace

Result<std::unique_ptr<KvSender>> KvSender::Create(KvPool* pool, const std::string& model_hash, OnTransfer on_transfer,
                                                   const TlsFiles& tls) {
  if (HelloText(pool->memory().layout, model_hash).size() > kMaxHelloBytes) {
    return Status(Code::kBadArgument, "the model hash is too long");
  }
  if (Status status = tls.given() ? CheckTls(tls) : Status::Ok(); !status.ok()) return status;
  return std::unique_ptr<KvSender>(std::make_unique<Sender>(pool, model_hash, tls, std::move(on_transfer)));
}

}  // namespace margay
