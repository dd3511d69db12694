// What makes a group possible: members, map and shape.
#include <algorithm>
#include <limits>

#include "comm/exchange.h"

namespace margay {
namespace {

Status Bad(const std::string& what) { return {Code::kBadArgument, "expert group: " + what}; }

Status InRange(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return Status::Ok();
  return Bad(std::string(name) + " is " + std::to_string(value) + ", must be " + std::to_string(least) + " to " + std::to_string(most));
}

}  // namespace

Status CheckOwners(const ExpertOwners& owners, size_t experts, int members) {
  if (owners.size() != experts) {
    return Bad("the map names " + std::to_string(owners.size()) + " experts, the model has " + std::to_string(experts));
  }
  for (size_t expert = 0; expert < owners.size(); ++expert) {
    const std::string name = "expert " + std::to_string(expert);
    if (owners[expert].empty()) return Bad(name + " has no owner");
    for (auto owner = owners[expert].begin(); owner != owners[expert].end(); ++owner) {
      if (*owner < 0 || *owner >= members) return Bad(name + " is owned by member " + std::to_string(*owner) + " of " + std::to_string(members));
      if (std::find(owners[expert].begin(), owner, *owner) != owner) return Bad(name + " names member " + std::to_string(*owner) + " twice");
    }
  }
  return Status::Ok();
}

Status GroupSpec::Check() const {
  constexpr int kMostMembers = 1024;
  constexpr int64_t kMost16 = std::numeric_limits<uint16_t>::max();
  const auto count = static_cast<int64_t>(members.size());
  const auto experts = static_cast<int64_t>(owners.size());
  for (const Status& checked :
       {InRange("members", count, 1, kMostMembers), InRange("self", self, 0, count - 1),
        InRange("experts", experts, 1, kMost16), InRange("hidden", hidden, 1, 1 << 20), InRange("topk", topk, 1, 1024),
        InRange("max_rows", max_rows, 1, kMost16), InRange("deadline_ms", deadline_ms, 1, 3'600'000)}) {
    if (!checked.ok()) return checked;
  }
  if (count > experts) return Bad(std::to_string(count) + " members for " + std::to_string(experts) + " experts");
  return CheckOwners(owners, owners.size(), static_cast<int>(count));
}

const char* LossCauseName(LossCause cause) {
  switch (cause) {
    case LossCause::kDeadline: return "deadline";
    case LossCause::kConnection: return "connection";
    case LossCause::kLeft: return "left";
    case LossCause::kAborted: return "aborted";
    case LossCause::kOutOfStep: return "out_of_step";
    case LossCause::kMalformed: return "malformed";
  }
  return "unknown";
}

int OwnerOf(const ExpertOwners& owners, int expert, int source, int row) {
  const std::vector<int>& held_by = owners[static_cast<size_t>(expert)];
  return held_by[static_cast<size_t>(expert + source + row) % held_by.size()];
}

}  // namespace margay
