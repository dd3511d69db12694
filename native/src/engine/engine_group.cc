// An engine as one rank of several (engine/group_seat.h): joining and leaving, and what that means for its steps.
#include <algorithm>
#include <utility>

#include "engine/engine.h"

namespace margay {
namespace {

std::string Number(uint64_t value) { return std::to_string(value); }

void Add(const ExchangeCounters& more, ExchangeCounters* sum) {
  sum->steps += more.steps;
  sum->rows_sent += more.rows_sent;
  sum->choices_sent += more.choices_sent;
  sum->dispatch_bytes += more.dispatch_bytes;
  sum->combine_bytes += more.combine_bytes;
  sum->begin_wait_ns += more.begin_wait_ns;
  sum->dispatch_wait_ns += more.dispatch_wait_ns;
  sum->combine_wait_ns += more.combine_wait_ns;
}

std::vector<int> HeldBy(int member, const ExpertOwners& owners) {
  std::vector<int> held;
  for (size_t expert = 0; expert < owners.size(); ++expert) {
    const std::vector<int>& by = owners[expert];
    if (std::find(by.begin(), by.end(), member) != by.end()) held.push_back(static_cast<int>(expert));
  }
  return held;
}

}  // namespace

Status Engine::OpenGroup() {
  if (!options_.group.has_value()) return Status::Ok();
  if (facts_.experts < options_.group->ranks) {
    return {Code::kBadArgument, Number(static_cast<uint64_t>(options_.group->ranks)) + " ranks are more than the model's " +
                                    Number(static_cast<uint64_t>(facts_.experts)) + " experts"};
  }
  if (options_.group->fp8 && facts_.combine == CombineMode::kPerExpert) {
    return {Code::kBadArgument, "rows of fp8: ref exchanges fp32, a deterministic engine bf16"};
  }
  Result<std::unique_ptr<ExchangeEndpoint>> endpoint = ExchangeEndpoint::Open(options_.group->host, options_.group->port);
  if (!endpoint.ok()) return endpoint.status();
  seat_ = std::make_unique<GroupSeat>();
  seat_->endpoint = std::move(*endpoint);
  return Status::Ok();
}

// The calls.

Status Engine::CheckSeat() const {
  if (Status usable = CheckUsable(); !usable.ok()) return usable;
  if (seat_ == nullptr) return {Code::kBadState, "this engine was not opened as one of several ranks"};
  return Status::Ok();
}

Result<CallId> Engine::JoinGroup(const GroupOrder& order) {
  GroupSpec spec;
  spec.epoch = order.epoch;
  spec.self = order.self;
  spec.members = order.members;
  spec.secret = order.secret;
  spec.map_version = order.map_version;
  spec.owners = order.owners;
  spec.hidden = facts_.hidden;
  spec.topk = facts_.topk;
  spec.max_rows = options_.model.max_rows;
  spec.combine = facts_.combine;
  spec.model = facts_.model_hash + " " + facts_.isa;
  std::lock_guard lock(mutex_);
  if (Status usable = CheckSeat(); !usable.ok()) return usable;
  if (seat_->joining || seat_->exchange != nullptr) return Status(Code::kBadState, "in group " + Number(seat_->epoch));
  spec.deadline_ms = spec.join_deadline_ms = options_.group->deadline_ms;
  spec.shared_memory = options_.group->shared_memory;
  spec.payload = options_.group->fp8 ? PayloadFormat::kFp8 : facts_.payload;
  if (Status good = spec.Check(); !good.ok()) return good;
  if (static_cast<int>(spec.members.size()) > options_.group->ranks) {
    return Status(Code::kBadArgument, Number(spec.members.size()) + " members, where " +
                                          Number(static_cast<uint64_t>(options_.group->ranks)) + " ranks are the most");
  }
  if (Status good = CheckOwners(spec.owners, static_cast<size_t>(facts_.experts), static_cast<int>(spec.members.size())); !good.ok()) {
    return good;
  }
  seat_->joining = true;
  seat_->lost = false;
  seat_->epoch = spec.epoch;
  seat_->self = spec.self;
  const CallId call = seat_->joined_by = next_call_++;
  seat_->errands.Leave([this, spec = std::move(spec), call] { Join(spec, call); });
  return call;
}

// On the errands' thread.
void Engine::Join(const GroupSpec& spec, CallId call) {
  model_->TouchExperts(HeldBy(spec.self, spec.owners));
  const auto wake = [this, call, seat = seat_.get()](bool lost) {
    {
      std::lock_guard lock(mutex_);
      // A group that was left may tell of its loss when the next one is being joined already.
      seat->lost = seat->lost || (lost && seat->joined_by == call);
    }
    work_.notify_one();
  };
  Result<std::unique_ptr<ExpertExchange>> joined =
      seat_->endpoint->Join(spec, {.peer_began = [wake] { wake(false); }, .lost = [wake] { wake(true); }});
  std::shared_ptr<ExpertExchange> exchange;
  if (joined.ok()) exchange = std::move(*joined);
  {
    std::lock_guard lock(mutex_);
    seat_->joining = false;
    Status ended = joined.status();
    if (ended.ok() && (stopping_ || seat_->leave_at_once)) ended = Status(Code::kGroupLost, "left while joining");
    // The engine thread sleeps: alone it has nothing to do.
    if (ended.ok()) ended = model_->SetExchange(exchange.get());
    if (ended.ok()) {
      seat_->exchange.swap(exchange);
      seat_->owners = spec.owners;
      seat_->prepared.clear();
    }
    outbox_.Put(CallEnded{call, ended});
    for (const CallId left : std::exchange(seat_->leaving, {})) outbox_.Put(CallEnded{left, Status::Ok()});
    seat_->leave_at_once = false;
    seat_->leave_offered = false;
  }
  work_.notify_one();
}

Result<CallId> Engine::LeaveGroup(bool at_once) {
  std::shared_ptr<ExpertExchange> exchange;
  CallId call;
  {
    std::lock_guard lock(mutex_);
    if (Status usable = CheckSeat(); !usable.ok()) return usable;
    call = next_call_++;
    if (!seat_->joining && seat_->exchange == nullptr) {
      outbox_.Put(CallEnded{call, Status::Ok()});
      return call;
    }
    seat_->leaving.push_back(call);
    outbox_.Ring();  // no step of the batch follows that would tell of the last ones
    if (seat_->joining) {
      seat_->leave_at_once = true;
      seat_->endpoint->StopJoining();
      return call;
    }
    if (at_once) {
      seat_->leave_at_once = true;
      exchange = seat_->exchange;
    } else if (seat_->leaving.size() == 1) {
      if (Status offered = seat_->exchange->OfferMap(kLeaveVersion, seat_->owners); !offered.ok()) {
        seat_->leaving.clear();
        return offered;
      }
    }
  }
  if (exchange != nullptr) exchange->Abort(exchange->self());
  work_.notify_one();
  return call;
}

Result<CallId> Engine::PrepareExperts(uint64_t version, ExpertOwners owners) {
  std::lock_guard lock(mutex_);
  if (Status usable = CheckSeat(); !usable.ok()) return usable;
  if (seat_->exchange == nullptr) return Status(Code::kBadState, "in no group");
  if (Status good = CheckOwners(owners, static_cast<size_t>(facts_.experts), seat_->exchange->members()); !good.ok()) return good;
  const CallId call = next_call_++;
  const uint64_t epoch = seat_->epoch;
  seat_->errands.Leave([this, version, owners = std::move(owners), self = seat_->self, epoch, call] {
    model_->TouchExperts(HeldBy(self, owners));
    std::lock_guard taken(mutex_);
    const bool stays = seat_->exchange != nullptr && seat_->epoch == epoch;
    if (stays) seat_->prepared[version] = owners;
    outbox_.Put(CallEnded{call, stays ? Status::Ok() : Status(Code::kGroupLost, "the group ended meanwhile")});
  });
  return call;
}

Status Engine::SwitchExperts(uint64_t version) {
  std::lock_guard lock(mutex_);
  if (Status usable = CheckSeat(); !usable.ok()) return usable;
  const auto prepared = seat_->prepared.find(version);
  if (seat_->exchange == nullptr || prepared == seat_->prepared.end()) {
    return {Code::kBadArgument, "expert map " + Number(version) + " was not prepared"};
  }
  if (!seat_->leaving.empty()) return Status::Ok();  // no step of its own will use it
  seat_->owners = prepared->second;
  Status offered = seat_->exchange->OfferMap(version, prepared->second);
  seat_->prepared.erase(seat_->prepared.begin(), std::next(prepared));
  return offered;
}

int Engine::exchange_port() const { return seat_ == nullptr ? 0 : seat_->endpoint->port(); }

ExchangeStats Engine::exchange_stats() {
  ExchangeStats stats;
  std::lock_guard lock(mutex_);
  if (stopping_) return stats;
  stats.routing = model_->routing_counters();
  if (seat_ == nullptr) return stats;
  stats.exchange = seat_->counted;
  if (seat_->exchange != nullptr) Add(seat_->exchange->counters(), &stats.exchange);
  const GreetingRefusals refused = seat_->endpoint->refused();
  stats.stale_messages = refused[static_cast<size_t>(GreetingRefusal::kStaleEpoch)];
  return stats;
}

// The engine thread; the mutex is held.

bool Engine::HasGroupStep() const {
  const GroupSeat& seat = *seat_;
  if (seat.exchange == nullptr) return false;
  if (seat.lost || (seat.leaving.empty() ? HasStep() : !seat.leave_offered)) return true;
  return !seat.exchange->Rest();
}

// A step without rows of its own has to be made: a peer waits for it, or the wish to leave is to be told.
bool Engine::MustServe() const {
  return seat_ != nullptr && (seat_->exchange->PeerBegan() || (!seat_->leaving.empty() && !seat_->leave_offered));
}

void Engine::LoseStep(bool planned, std::unique_lock<std::mutex>* lock) {
  StepReport report;
  EndGroup(lock, [&] {
    for (const Job& job : jobs_) {
      report.entries.insert(report.entries.end(), {job.ref.slot, job.ref.generation, 0, 0, static_cast<int32_t>(Finish::kSkipped), 0});
      if (job.sequence != nullptr) GiveUp(job);
    }
    if (jobs_.empty() && !planned) return;
    if (planned) {
      report.plan = queue_.front().number;
      queue_.pop_front();
    }
    report.step = static_cast<int64_t>(counters_.steps++);
    report.start_ms = EpochMs();
    outbox_.Put(std::move(report));
  });
}

// As if the job had never been.
void Engine::GiveUp(const Job& job) {
  Sequence* sequence = job.sequence;
  sequence->running = false;
  if (job.planned) {
    sequence->planned_rows -= job.rows;
    if (job.produces) --sequence->planned_tokens;
  }
  if (job.masked && job.produces && sequence->masked && !sequence->mask_ready) {
    std::swap(sequence->mask, sequence->next_mask);
    sequence->mask_ready = true;
  }
  ReleaseIfIdle(sequence);
}

void Engine::EndGroup(std::unique_lock<std::mutex>* lock, const std::function<void()>& settle) {
  GroupSeat& seat = *seat_;
  std::shared_ptr<ExpertExchange> ended = std::exchange(seat.exchange, nullptr);
  (void)model_->SetExchange(nullptr);  // never fails
  const GroupLoss loss = ended->loss();
  Add(ended->counters(), &seat.counted);
  // Those who leave in order are in nobody's way, whoever closes first.
  const bool left = !seat.leaving.empty() && (seat.leave_at_once || !seat.lost || loss.cause == LossCause::kLeft);
  if (!left) outbox_.Put(GroupLostEvent{static_cast<int64_t>(seat.epoch), loss.guilty, LossCauseName(loss.cause)});
  settle();
  for (const CallId call : std::exchange(seat.leaving, {})) outbox_.Put(CallEnded{call, Status::Ok()});
  seat.leave_offered = seat.leave_at_once = seat.lost = false;
  // Its end waits for threads that may be about to tell of it.
  lock->unlock();
  ended.reset();
  lock->lock();
}

}  // namespace margay
