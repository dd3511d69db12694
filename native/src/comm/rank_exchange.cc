#include "comm/rank_exchange.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/trace.h"

namespace margay {

RankExchange::RankExchange(const GroupSpec& spec, std::byte* own, GroupEvents events)
    : spec_(spec),
      layout_(spec_),
      format_(spec.payload, spec.hidden),
      own_(own, &layout_),
      events_(std::move(events)),
      version_(spec.map_version),
      owners_(spec.owners) {
  const auto members = spec.members.size();
  const auto rows = static_cast<size_t>(spec.max_rows);
  MailboxHead* head = own_.head();
  head->magic = MailboxHead::kMagic;
  head->epoch = spec.epoch;
  head->bytes = layout_.bytes();
  head->map_version.store(spec.map_version, std::memory_order_relaxed);
  awaited_.resize(rows * static_cast<size_t>(spec.topk));
  awaited_count_.resize(rows);
  entries_.resize(members);
  rows_.resize(members);
  last_row_.resize(members);
  awaits_.resize(members);
  sorted_.resize(static_cast<size_t>(spec.topk));
  own_list_.resize(layout_.list_entries());
  lists_.resize(members);
  if (spec.combine == CombineMode::kSummed) own_sums_.resize(rows * static_cast<size_t>(spec.hidden));
  received_.reserve(members * rows);
  choices_.reserve(members * layout_.list_entries());
  first_result_.reserve(members * rows);
  results_for_.resize(members);
  arrivals_.reserve(members);
  if (spec.link_bytes_per_s > 0) link_.emplace(spec.link_bytes_per_s, spec.link_latency_ns);
  SetHeld();
}

void RankExchange::SetHeld() {
  held_.assign(owners_.size(), 0);
  sole_owner_.assign(owners_.size(), -1);
  for (size_t expert = 0; expert < owners_.size(); ++expert) {
    const std::vector<int>& owners = owners_[expert];
    held_[expert] = std::find(owners.begin(), owners.end(), spec_.self) != owners.end() ? 1 : 0;
    if (owners.size() == 1) sole_owner_[expert] = static_cast<int16_t>(owners.front());
  }
}

Status RankExchange::OfferMap(uint64_t version, ExpertOwners owners) {
  if (Status checked = CheckOwners(owners, spec_.owners.size(), members()); !checked.ok()) return checked;
  const std::lock_guard lock(mutex_);
  const uint64_t latest = offered_.empty() ? map_version() : offered_.rbegin()->first;
  if (version <= latest) {
    return {Code::kBadArgument, "expert map " + std::to_string(version) + " is not newer than " + std::to_string(latest)};
  }
  offered_.emplace(version, std::move(owners));
  return Status::Ok();
}

Status RankExchange::Expect(Stage stage, const char* call) const {
  if (lost_.load(std::memory_order_acquire)) return LostStatus();
  if (stage_ == stage) return Status::Ok();
  return {Code::kBadState, std::string(call) + " out of order"};
}

Status RankExchange::BeginStep() {
  if (lost_.load(std::memory_order_acquire)) return LostStatus();
  if (stage_ != Stage::kOutside && stage_ != Stage::kLayer) return {Code::kBadState, "BeginStep within a layer"};
  stage_ = Stage::kLayer;
  settled_ = false;
  ++step_;
  MailboxHead* head = own_.head();
  {
    const std::lock_guard lock(mutex_);
    const uint64_t offer = offered_.empty() ? map_version() : offered_.rbegin()->first;
    head->map_version.store(offer, std::memory_order_relaxed);
    ++counters_.steps;
  }
  head->resting.store(0, std::memory_order_relaxed);
  // A peer either sees this number before it rests, or is seen resting (Rest).
  head->begun.store(step_, std::memory_order_seq_cst);
  WakeAll(&head->begun);
  for (Lane* lane : lanes_) {
    if (lane == nullptr) continue;
    lane->Began();
    if (lane->theirs().head()->resting.load(std::memory_order_seq_cst) != 0) lane->Ring();
  }
  return Status::Ok();
}

bool RankExchange::PeerBegan() const {
  const uint32_t mine = own_.head()->begun.load(std::memory_order_relaxed);
  return std::any_of(lanes_.begin(), lanes_.end(), [&](const Lane* lane) {
    return lane != nullptr && Reached(lane->theirs().head()->begun.load(std::memory_order_seq_cst), mine + 1);
  });
}

bool RankExchange::Rest() {
  own_.head()->resting.store(1, std::memory_order_seq_cst);
  if (!PeerBegan() && !lost_.load(std::memory_order_acquire)) return true;
  own_.head()->resting.store(0, std::memory_order_relaxed);
  return false;
}

// The lowest version that any member offered for this step: all have it.
Status RankExchange::SettleMap() {
  const Status all = AwaitAll(Waiting::For::kBegin, step_, nullptr, &ExchangeCounters::begin_wait_ns);
  if (!all.ok()) return all;
  uint64_t version = own_.head()->map_version.load(std::memory_order_relaxed);
  for (const Lane* lane : lanes_) {
    if (lane != nullptr) version = std::min(version, lane->theirs().head()->map_version.load(std::memory_order_relaxed));
  }
  settled_ = true;
  if (version == map_version()) return Status::Ok();
  {
    const trace::Span span("new expert map");
    const std::lock_guard lock(mutex_);
    const auto offer = offered_.find(version);
    if (offer != offered_.end()) {
      owners_ = std::move(offer->second);
      offered_.erase(offered_.begin(), std::next(offer));
      version_.store(version, std::memory_order_release);
      SetHeld();
      return Status::Ok();
    }
  }
  return Lost({-1, LossCause::kOutOfStep});
}

void RankExchange::PutRow(int row, const float* values) { format_.EncodePayload(values, own_.row(number_ + 1, row)); }

Status RankExchange::DispatchSend(int layer, const DispatchRows& mine) {
  if (Status ready = Expect(Stage::kLayer, "DispatchSend"); !ready.ok()) return ready;
  if (mine.rows < 0 || mine.rows > spec_.max_rows) {
    return {Code::kBadArgument, std::to_string(mine.rows) + " rows; the group was made for " + std::to_string(spec_.max_rows)};
  }
  if (!settled_) {
    if (Status settled = SettleMap(); !settled.ok()) return settled;
  }
  ++number_;
  layer_ = layer;
  values_ = mine.values;
  Assign(mine);
  uint64_t rows = 0, entries = 0;
  for (int member = 0; member < members(); ++member) {
    const auto m = static_cast<size_t>(member);
    *own_.list_head(number_, member) = {number_, static_cast<uint32_t>(layer), entries_[m], rows_[m]};
    awaits_[m] = member != self() && rows_[m] > 0 ? 1 : 0;
    if (member == self()) continue;
    rows += rows_[m];
    entries += entries_[m];
  }
  own_.head()->dispatched_ns.store(MonotonicNs(), std::memory_order_relaxed);
  own_.head()->dispatched.store(number_, std::memory_order_release);
  WakeAll(&own_.head()->dispatched);
  for (Lane* lane : lanes_) {
    if (lane != nullptr) lane->Dispatched(number_);
  }
  stage_ = Stage::kSent;
  const std::lock_guard lock(mutex_);
  counters_.rows_sent += rows;
  counters_.choices_sent += entries;
  counters_.dispatch_bytes += rows * PayloadBytes(spec_.payload, spec_.hidden) + entries * kChoiceBytes;
  return Status::Ok();
}

// Spreads every row's real experts over the lists of their owners.
void RankExchange::Assign(const DispatchRows& mine) {
  std::fill(entries_.begin(), entries_.end(), 0);
  std::fill(rows_.begin(), rows_.end(), 0);
  std::fill(last_row_.begin(), last_row_.end(), -1);
  for (int member = 0; member < members(); ++member) {
    lists_[static_cast<size_t>(member)] = member == self() ? own_list_.data() : own_.list(number_, member);
  }
  const auto experts = static_cast<int32_t>(owners_.size());
  const bool summed = spec_.combine == CombineMode::kSummed;
  for (int row = 0; row < mine.rows; ++row) {
    ExpertChoice* const first = sorted_.data();
    ExpertChoice* end = first;
    for (int k = 0; k < spec_.topk; ++k) {
      const int32_t expert = mine.chosen[At(row) + static_cast<size_t>(k)];
      if (expert < 0 || expert >= experts) continue;
      ExpertChoice* at = end++;
      for (; at > first && at[-1].expert > expert; --at) *at = at[-1];
      *at = {expert, mine.weights[At(row) + static_cast<size_t>(k)]};
    }
    Awaited* awaited = &awaited_[At(row)];
    for (const ExpertChoice& one : std::span(first, end)) {
      const int32_t sole = sole_owner_[static_cast<size_t>(one.expert)];
      const int32_t by = sole >= 0 ? sole : OwnerOf(owners_, one.expert, self(), row);
      const auto owner = static_cast<size_t>(by);
      const bool more = last_row_[owner] == row;
      if (!more) ++rows_[owner];
      last_row_[owner] = row;
      if (!summed || !more) *awaited++ = {by, summed ? rows_[owner] - 1 : entries_[owner], summed ? 1 : one.weight};
      lists_[owner][entries_[owner]++] = {static_cast<uint16_t>(row), static_cast<uint16_t>(one.expert), one.weight};
    }
    awaited_count_[static_cast<size_t>(row)] = static_cast<int32_t>(awaited - &awaited_[At(row)]);
  }
}

Status RankExchange::DispatchReceive(int layer, std::span<const ReceivedRow>* rows) {
  if (Status ready = Expect(Stage::kSent, "DispatchReceive"); !ready.ok()) return ready;
  const Status all = AwaitAll(Waiting::For::kDispatch, number_, nullptr, &ExchangeCounters::dispatch_wait_ns);
  if (!all.ok()) return all;
  received_.clear();
  choices_.clear();
  first_result_.clear();
  for (int member = 0; member < members(); ++member) {
    if (member != self()) {
      if (Status taken = TakeListOf(member, layer); !taken.ok()) return taken;
      continue;
    }
    for (uint32_t i = 0; i < entries_[static_cast<size_t>(member)]; ++i) Take(member, own_list_[i], i);
  }
  *rows = received_;
  stage_ = Stage::kReceived;
  return Status::Ok();
}

// Entries of others are copied before they are looked at: their memory may change at any time.
Status RankExchange::TakeListOf(int member, int layer) {
  const Mailbox& theirs = lanes_[static_cast<size_t>(member)]->theirs();
  const ListHead head = *theirs.list_head(number_, self());
  if (head.number != number_ || head.layer != static_cast<uint32_t>(layer)) return Lost({member, LossCause::kOutOfStep});
  if (head.entries > layout_.list_entries()) return Lost({member, LossCause::kMalformed});
  const ListEntry* const list = theirs.list(number_, self());
  int64_t before = -1;
  for (uint32_t i = 0; i < head.entries; ++i) {
    const auto entry = std::bit_cast<ListEntry>(__atomic_load_n(reinterpret_cast<const uint64_t*>(&list[i]), __ATOMIC_RELAXED));
    const int64_t place = int64_t{entry.row} << 16 | entry.expert;
    const bool good = place > before && entry.row < spec_.max_rows && entry.expert < held_.size() && held_[entry.expert] != 0;
    if (!good) return Lost({member, LossCause::kMalformed});
    before = place;
    Take(member, entry, i);
  }
  return Status::Ok();
}

// Entry `i` of the member's list, behind those before it.
void RankExchange::Take(int member, const ListEntry& entry, uint32_t i) {
  if (i == 0 || received_.back().row != entry.row) {
    const std::byte* payload = member == self() ? nullptr : lanes_[static_cast<size_t>(member)]->theirs().row(number_, entry.row);
    const uint32_t first = i == 0 ? 0 : first_result_.back() + 1;
    first_result_.push_back(spec_.combine == CombineMode::kSummed ? first : i);
    received_.push_back({member, entry.row, {&choices_.emplace_back(), 0}, payload});
  } else {
    choices_.emplace_back();
  }
  choices_.back() = {entry.expert, entry.weight};
  std::span<const ExpertChoice>& choices = received_.back().choices;
  choices = {choices.data(), choices.size() + 1};
}

void RankExchange::Decode(int i, float* out) const {
  const ReceivedRow& row = received_[static_cast<size_t>(i)];
  if (row.payload != nullptr) return format_.DecodePayload(row.payload, out);
  const auto hidden = static_cast<size_t>(spec_.hidden);
  const float* values = values_ + static_cast<size_t>(row.row) * hidden;
  if (spec_.combine == CombineMode::kPerExpert) return format_.RoundPayload(values, out);
  std::memcpy(out, values, hidden * sizeof(float));
}

void RankExchange::PutResult(int i, int choice, const float* values) {
  const ReceivedRow& row = received_[static_cast<size_t>(i)];
  const auto hidden = static_cast<size_t>(spec_.hidden);
  if (row.source == self() && spec_.combine == CombineMode::kSummed) {
    std::memcpy(&own_sums_[static_cast<size_t>(row.row) * hidden], values, hidden * sizeof(float));
    return;
  }
  const size_t result = first_result_[static_cast<size_t>(i)] + static_cast<size_t>(choice);
  format_.EncodeResult(values, own_.result(row.source, result));
}

Status RankExchange::CombineSend(int) {
  if (Status ready = Expect(Stage::kReceived, "CombineSend"); !ready.ok()) return ready;
  std::fill(results_for_.begin(), results_for_.end(), 0);
  for (size_t i = 0; i < received_.size(); ++i) {
    const size_t rows = spec_.combine == CombineMode::kSummed ? 1 : received_[i].choices.size();
    results_for_[static_cast<size_t>(received_[i].source)] += rows;
  }
  for (int member = 0; member < members(); ++member) {
    *own_.result_head(member) = {number_, static_cast<uint32_t>(results_for_[static_cast<size_t>(member)])};
  }
  own_.head()->combined_ns.store(MonotonicNs(), std::memory_order_relaxed);
  own_.head()->combined.store(number_, std::memory_order_release);
  WakeAll(&own_.head()->combined);
  uint64_t sent = 0;
  for (int member = 0; member < members(); ++member) {
    Lane* lane = lanes_[static_cast<size_t>(member)];
    const size_t rows = results_for_[static_cast<size_t>(member)];
    if (lane == nullptr || rows == 0) continue;
    lane->Combined(number_);
    sent += rows;
  }
  stage_ = Stage::kCombineSent;
  const std::lock_guard lock(mutex_);
  counters_.combine_bytes += sent * ResultBytes(spec_.payload, spec_.hidden);
  return Status::Ok();
}

Status RankExchange::CombineReceive(int) {
  if (Status ready = Expect(Stage::kCombineSent, "CombineReceive"); !ready.ok()) return ready;
  const Status all = AwaitAll(Waiting::For::kCombine, number_, &awaits_, &ExchangeCounters::combine_wait_ns);
  if (!all.ok()) return all;
  for (int member = 0; member < members(); ++member) {
    const auto m = static_cast<size_t>(member);
    if (awaits_[m] == 0) continue;
    const ResultHead head = *lanes_[m]->theirs().result_head(self());
    const uint32_t rows = spec_.combine == CombineMode::kSummed ? rows_[m] : entries_[m];
    if (head.number != number_ || head.rows != rows) return Lost({member, LossCause::kMalformed});
  }
  stage_ = Stage::kLayer;
  return Status::Ok();
}

void RankExchange::AddResults(int row, float* out) const {
  const std::span<const Awaited> awaited(&awaited_[At(row)], static_cast<size_t>(awaited_count_[static_cast<size_t>(row)]));
  const auto add = [&](const Awaited& one) {
    const Mailbox& theirs = one.owner == self() ? own_ : lanes_[static_cast<size_t>(one.owner)]->theirs();
    format_.AddResult(theirs.result(self(), one.result), one.weight, out);
  };
  if (spec_.combine == CombineMode::kPerExpert) {
    for (const Awaited& one : awaited) add(one);
    return;
  }
  // By member, each once.
  for (int member = 0; member < members(); ++member) {
    const auto one = std::find_if(awaited.begin(), awaited.end(), [&](const Awaited& a) { return a.owner == member; });
    if (one == awaited.end()) continue;
    if (member == self()) {
      format_.AddRow(&own_sums_[static_cast<size_t>(row) * static_cast<size_t>(spec_.hidden)], out);
    } else {
      add(*one);
    }
  }
}

ExchangeCounters RankExchange::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

}  // namespace margay
