// One rank's exchange over lanes to its peers. Owns the bookkeeping of the running layer and the waits; whoever makes it
// owns the memory of outboxes and lanes and keeps both until it is gone.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "comm/exchange.h"
#include "comm/lane.h"
#include "comm/row_format.h"
#include "comm/wait.h"
#include "core/link_model.h"

namespace margay {

class RankExchange : public ExpertExchange {
 public:
  // `own`: memory of the outbox, zeroed. The spec has been checked.
  RankExchange(const GroupSpec& spec, std::byte* own, GroupEvents events);

  // One per peer, before the first call; null at the own place.
  void SetLanes(std::vector<Lane*> lanes) { lanes_ = std::move(lanes); }
  // The group is lost; the first word counts. Any thread.
  void Lose(GroupLoss loss);
  // A lane saw the peer begin a step or leave. Any thread.
  void PeerMoved();
  // No event is told any more once it returns, and the others know that this rank leaves.
  void Leave();

  int self() const override { return spec_.self; }
  int members() const override { return static_cast<int>(spec_.members.size()); }
  Status OfferMap(uint64_t version, ExpertOwners owners) override;
  uint64_t map_version() const override { return version_.load(std::memory_order_acquire); }
  Status BeginStep() override;
  bool PeerBegan() const override;
  bool Rest() override;
  void PutRow(int row, const float* values) override;
  Status DispatchSend(int layer, const DispatchRows& mine) override;
  bool DispatchArrived() override { return AllHere(Waiting::For::kDispatch, nullptr); }
  bool CombineArrived() override { return AllHere(Waiting::For::kCombine, &awaits_); }
  Status DispatchReceive(int layer, std::span<const ReceivedRow>* rows) override;
  void Decode(int i, float* out) const override;
  void PutResult(int i, int choice, const float* values) override;
  Status CombineSend(int layer) override;
  Status CombineReceive(int layer) override;
  void AddResults(int row, float* out) const override;
  void Abort(int guilty) override { Lose({guilty, LossCause::kAborted}); }
  GroupLoss loss() const override;
  ExchangeCounters counters() const override;

 protected:
  const GroupSpec& spec() const { return spec_; }
  const MailboxLayout& layout() const { return layout_; }
  const Mailbox& own() const { return own_; }

 private:
  enum class Stage : uint8_t { kOutside, kLayer, kSent, kReceived, kCombineSent };
  // One result for an own row.
  struct Awaited {
    int32_t owner;
    uint32_t result;  // number among the owner's results for this rank
    float weight;
  };

  size_t At(int row) const { return static_cast<size_t>(row) * static_cast<size_t>(spec_.topk); }
  Status Expect(Stage stage, const char* call) const;
  Status LostStatus() const;
  Status Lost(GroupLoss loss);

  Status SettleMap();
  void Assign(const DispatchRows& mine);
  Status TakeListOf(int member, int layer);
  void Take(int member, const ListEntry& entry, uint32_t i);
  void SetHeld();

  // waits.cc
  const std::atomic<uint32_t>* Word(int member, Waiting::For what) const;
  bool Here(const Waiting& waiting) const;
  // Of the running layer.
  bool AllHere(Waiting::For what, const std::vector<uint8_t>* needed);
  Status Await(const Waiting& waiting, WaitClock::time_point deadline);
  Status AwaitAll(Waiting::For what, uint32_t number, const std::vector<uint8_t>* needed, uint64_t ExchangeCounters::*waited);
  // When the link would have brought all of the running layer, which is here.
  int64_t LinkArrivalNs(Waiting::For what, const std::vector<uint8_t>* needed);
  void HoldForLink(Waiting::For what, const std::vector<uint8_t>* needed, WaitClock::time_point deadline);
  std::optional<GroupLoss> ToldLoss() const;
  void WakeWaiters() const;
  int Guilty(Waiting waiting) const;
  WaitClock::duration deadline() const { return std::chrono::milliseconds(spec_.deadline_ms); }

  const GroupSpec spec_;
  const MailboxLayout layout_;
  const RowFormat format_;
  const Mailbox own_;
  std::vector<Lane*> lanes_;
  std::optional<LinkModel> link_;
  Waiting carried_;  // the last that the link was asked about, and when that arrives
  int64_t carried_ns_ = 0;
  std::vector<std::pair<int64_t, size_t>> arrivals_;  // of one wait: when sent, bytes

  std::atomic<bool> lost_{false};
  mutable std::mutex mutex_;  // of the next three
  GroupLoss loss_;
  std::map<uint64_t, ExpertOwners> offered_;  // versions beyond the running one
  ExchangeCounters counters_;
  std::mutex events_mutex_;  // held while one is told
  GroupEvents events_;

  std::atomic<uint64_t> version_;
  ExpertOwners owners_;
  std::vector<uint8_t> held_;        // [experts]: by this rank
  std::vector<int16_t> sole_owner_;  // [experts]: -1 where several hold it

  Stage stage_ = Stage::kOutside;
  bool settled_ = false;  // the map of this step
  uint32_t step_ = 0;
  uint32_t number_ = 0;   // of the layer, over all steps
  int layer_ = 0;
  const float* values_ = nullptr;

  // Of the own rows.
  std::vector<ExpertChoice> sorted_;      // [topk]: of one row
  std::vector<Awaited> awaited_;          // [max_rows, topk], the first awaited_count_[row] of each, by expert
  std::vector<int32_t> awaited_count_;    // [max_rows]
  std::vector<uint32_t> entries_, rows_;  // [members]: of the list for each
  std::vector<int32_t> last_row_;         // [members]: of the list
  std::vector<uint8_t> awaits_;           // [members]: results of this layer
  std::vector<ListEntry> own_list_;       // [list entries]: of the own experts
  std::vector<ListEntry*> lists_;         // [members]: being written
  std::vector<float> own_sums_;           // kSummed: results of own rows by the own experts, [max_rows, hidden]

  // Of the rows received.
  std::vector<ReceivedRow> received_;
  std::vector<ExpertChoice> choices_;   // never beyond what was reserved: rows point into it
  std::vector<uint32_t> first_result_;  // number of its first result row
  std::vector<size_t> results_for_;     // [members]: result rows of this layer
};

}  // namespace margay
