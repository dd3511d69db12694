// What makes an engine one rank of several. An engine that is its worker's only one has none of it.
//
//   alone -> joining -> joined -> alone        joined -> leaving -> alone        joined, leaving -> lost -> alone
//
// G1 alone, the engine keeps sequences and plans and begins no step
// G2 joined, it begins a step when it has work or a peer has begun one; without work it takes part with no rows. Between
//    steps it sleeps, woken by the exchange
// G3 the exchange is set while the engine thread sleeps and taken away by that thread; others use it under the engine's
//    mutex, or a copy of the pointer outside of it, for its any-thread calls alone
// G4 leaving in order is a map version that every member offers: the step that has it is the last one, for all alike
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/endpoint.h"
#include "comm/exchange.h"
#include "engine/errands.h"

namespace margay {

// Of an engine whose worker has several ranks.
struct GroupOptions {
  int ranks = 0;  // most that a group has
  std::string host;
  int port = 0;
  bool shared_memory = true;
  bool fp8 = false;      // rows travel to experts as e4m3, where they would as bf16
  int deadline_ms = 0;  // of joining, and of every wait within a step
};

// Whom to step with. The rest of a GroupSpec is the engine's own.
struct GroupOrder {
  uint64_t epoch = 0;
  int self = 0;
  std::vector<GroupMember> members;
  std::string secret;  // by which they know each other
  uint64_t map_version = 0;
  ExpertOwners owners;
};

// Number of a call whose end is told later, by a CallEnded.
using CallId = int64_t;

inline constexpr uint64_t kLeaveVersion = std::numeric_limits<uint64_t>::max();

struct GroupSeat {
  std::unique_ptr<ExchangeEndpoint> endpoint;

  // Under the engine's mutex.
  bool joining = false;
  bool lost = false;  // as the exchange told
  CallId joined_by = 0;  // the call that began the latest group
  uint64_t epoch = 0;
  int self = 0;
  std::shared_ptr<ExpertExchange> exchange;  // null: alone
  std::vector<CallId> leaving;  // calls that wait for its end
  bool leave_offered = false;   // in a step that this rank has begun
  bool leave_at_once = false;
  ExpertOwners owners;                        // of the latest map that was joined with or switched to
  std::map<uint64_t, ExpertOwners> prepared;  // by version
  ExchangeCounters counted;                   // in groups that have ended

  Errands errands;  // last: its thread uses what stands above
};

}  // namespace margay
