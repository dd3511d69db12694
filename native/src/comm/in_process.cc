// A group whose members are threads of one process: each reads the others' outboxes where they lie.
#include "comm/rank_exchange.h"

namespace margay {
namespace {

// What the members of one group have in common; lives as long as the last of them.
struct Group {
  explicit Group(const GroupSpec& s) : spec(s), layout(s) {}

  const GroupSpec spec;
  const MailboxLayout layout;
  std::vector<MailboxMemory> outboxes;
  std::recursive_mutex mutex;  // losing one member loses the next
  std::vector<RankExchange*> ranks;  // null: gone
};

class ThreadLane : public Lane {
 public:
  ThreadLane(Mailbox theirs, Group* group, int peer) : Lane(theirs), group_(group), peer_(peer) {}
  void Ring() override {
    const std::lock_guard lock(group_->mutex);
    if (RankExchange* rank = group_->ranks[static_cast<size_t>(peer_)]) rank->PeerMoved();
  }
  void Left() override { Ring(); }

 private:
  Group* const group_;
  const int peer_;
};

class ThreadExchange : public RankExchange {
 public:
  ThreadExchange(const std::shared_ptr<Group>& group, const GroupSpec& spec, GroupEvents events)
      : RankExchange(spec, group->outboxes[static_cast<size_t>(spec.self)].base(), std::move(events)),
        group_(group) {}
  ~ThreadExchange() override {
    {
      const std::lock_guard lock(group_->mutex);
      group_->ranks[static_cast<size_t>(self())] = nullptr;
    }
    Leave();
  }
  void Connect() {
    std::vector<Lane*> lanes;
    for (int peer = 0; peer < members(); ++peer) {
      const Mailbox theirs(group_->outboxes[static_cast<size_t>(peer)].base(), &group_->layout);
      owned_.push_back(peer == self() ? nullptr : std::make_unique<ThreadLane>(theirs, group_.get(), peer));
      lanes.push_back(owned_.back().get());
    }
    SetLanes(std::move(lanes));
    group_->ranks[static_cast<size_t>(self())] = this;
  }

 private:
  const std::shared_ptr<Group> group_;
  std::vector<std::unique_ptr<Lane>> owned_;
};

}  // namespace

Result<std::vector<std::unique_ptr<ExpertExchange>>> JoinInProcess(const GroupSpec& wanted, int members,
                                                                   std::vector<GroupEvents> events) {
  GroupSpec spec = wanted;
  spec.self = 0;
  if (members >= 0) spec.members.resize(static_cast<size_t>(members));
  if (Status checked = spec.Check(); !checked.ok()) return checked;
  const auto group = std::make_shared<Group>(spec);
  for (int member = 0; member < members; ++member) {
    Result<MailboxMemory> outbox = MailboxMemory::Create(group->layout);
    if (!outbox.ok()) return outbox.status();
    group->outboxes.push_back(std::move(*outbox));
  }
  group->ranks.resize(static_cast<size_t>(members));
  events.resize(static_cast<size_t>(members));
  std::vector<std::unique_ptr<ThreadExchange>> ranks;
  for (int member = 0; member < members; ++member) {
    spec.self = member;
    ranks.push_back(std::make_unique<ThreadExchange>(group, spec, std::move(events[static_cast<size_t>(member)])));
  }
  std::vector<std::unique_ptr<ExpertExchange>> exchanges;
  for (auto& rank : ranks) {
    rank->Connect();
    exchanges.push_back(std::move(rank));
  }
  return exchanges;
}

}  // namespace margay
