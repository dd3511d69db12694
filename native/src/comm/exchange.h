// The expert all-to-all of a group of ranks that step together: a token's row goes to every rank that holds at least one
// of its chosen experts (dispatch), and what those made of it comes back (combine). Each half is split into a send, which
// does not wait, and a receive, so that a layer's dense work runs in between.
//
// One exchange per rank and epoch:
//
//   joined -> (resting <-> in a step: layers of [dispatch send, dispatch receive, combine send, combine receive])* -> lost
//
// X1 every rank begins every step and passes through the same layers; a rank without work does so with no rows
// X2 only the owner writes its outbox; peers read it
// X3 a wait ends by its deadline, and when the group is lost, for whatever reason, every later call fails at once
// X4 exactly what is needed travels: a row once to each rank that holds one of its real experts, never for a
//    zero-computation expert, and nothing for experts of the own rank
//
// All calls are the engine thread's, except where said otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/status.h"

namespace margay {

// How rows travel to the experts: bf16, e4m3 with one fp32 scale per 128 values, or exact (the `ref` backend).
enum class PayloadFormat : uint8_t { kBf16, kFp8, kFp32 };

// How results travel back, in bf16 (fp32 where rows travel as fp32).
enum class CombineMode : uint8_t {
  kSummed,     // one row per token and rank, weighted and summed there in fp32
  kPerExpert,  // one row per token and expert, weighted and summed by the token's owner in the order of the experts: the
               // same bits however experts are spread. The own rank's rows and results are rounded alike.
};

// For every real expert the members that hold it, at least one, each once.
using ExpertOwners = std::vector<std::vector<int>>;

struct GroupMember {
  std::string rank_id;
  std::string host;      // an IP address or "localhost"
  int port = 0;          // of its endpoint (endpoint.h)
  std::string host_key;  // HostKey() over there: equal keys may share memory
};

struct GroupSpec {
  uint64_t epoch = 0;
  int self = 0;  // index in `members`
  std::vector<GroupMember> members;
  uint64_t map_version = 1;
  ExpertOwners owners;
  int hidden = 0;
  int topk = 0;
  int max_rows = 0;  // of one rank in one step
  PayloadFormat payload = PayloadFormat::kBf16;
  CombineMode combine = CombineMode::kSummed;
  int deadline_ms = 3'000;         // of every wait within a step
  // Tests and benchmarks: what peers send counts as arrived when a link of this kind, shared by all who send to this
  // rank, would have brought it. 0 bytes/s: no such link.
  double link_bytes_per_s = 0;
  int64_t link_latency_ns = 0;
  // Only for groups of processes (endpoint.h):
  int join_deadline_ms = 10'000;
  bool shared_memory = true;        // where host keys are equal
  std::string model;                // has to be the same in all ranks: model hash, code path
  std::string secret;               // of this group, known to its members alone; no limit to its length

  // The first thing that is wrong with it, as a sentence.
  Status Check() const;
};

// The rows of this rank, all of them told by PutRow.
struct DispatchRows {
  int rows = 0;
  const float* values = nullptr;     // [rows, hidden], for the own experts; valid until the layer's CombineSend
  const int32_t* chosen = nullptr;   // [rows, topk]: real experts, or ids beyond them for zero-computation experts
  const float* weights = nullptr;    // [rows, topk]
};

struct ExpertChoice {
  int32_t expert = 0;
  float weight = 0;
};

// One row for experts of this rank.
struct ReceivedRow {
  int32_t source = 0;                     // member it comes from, this rank included
  int32_t row = 0;                        // its number there
  std::span<const ExpertChoice> choices;  // those that this rank computes, by rising expert
  const std::byte* payload = nullptr;     // where it lies, as it travelled; null for rows of this rank
};

enum class LossCause : uint8_t {
  kDeadline,    // a member did not do its part in time
  kConnection,  // its process ended or cannot be reached
  kLeft,        // it left
  kAborted,     // Abort, here or there
  kOutOfStep,   // it is in another layer, or uses another map
  kMalformed,   // what it sent makes no sense
};
inline constexpr int kLossCauses = 6;
// "deadline", "connection", "left", "aborted", "out_of_step", "malformed"
const char* LossCauseName(LossCause cause);

// Why a group ended.
struct GroupLoss {
  int guilty = -1;  // member, or -1: nobody in particular; of a broken connection one of its two ends
  LossCause cause = LossCause::kAborted;
};

struct ExchangeCounters {
  uint64_t steps = 0;
  uint64_t rows_sent = 0;       // rows times ranks touched, without the own
  uint64_t choices_sent = 0;    // (row, expert) pairs among them
  uint64_t dispatch_bytes = 0;  // payload, scales, ids and weights sent
  uint64_t combine_bytes = 0;   // results sent
  uint64_t begin_wait_ns = 0;   // until all had begun a step, beyond the own work
  uint64_t dispatch_wait_ns = 0;
  uint64_t combine_wait_ns = 0;
};

// Bytes of one row as it travels: payload and scales.
size_t PayloadBytes(PayloadFormat format, int hidden);
// Of one result row.
size_t ResultBytes(PayloadFormat format, int hidden);
// Of the id and weight of one choice.
inline constexpr size_t kChoiceBytes = 8;

// Called from any thread until the destructor begins, also from within a call of the engine thread; must return at once.
struct GroupEvents {
  std::function<void()> peer_began;  // this rank rests and a peer has begun a step: PeerBegan() is true
  std::function<void()> lost;        // once; loss() tells why
};

class ExpertExchange {
 public:
  virtual ~ExpertExchange() = default;  // leaves: for the others the group is lost
  virtual int self() const = 0;
  virtual int members() const = 0;

  // The map to use from the first step before which every rank has offered it. Versions rise. Any thread.
  virtual Status OfferMap(uint64_t version, ExpertOwners owners) = 0;
  // Of this step, once the first DispatchSend has returned; before, of the last one.
  virtual uint64_t map_version() const = 0;

  // Begins a step, for all members. Returns at once; the first DispatchSend waits until all have begun.
  virtual Status BeginStep() = 0;
  // Whether a peer has begun a step that this rank has not: join it. Any thread.
  virtual bool PeerBegan() const = 0;
  // Call before sleeping between steps: from here on `peer_began` is called. False when a peer has begun already or the
  // group is lost: do not sleep.
  virtual bool Rest() = 0;

  // Own row `row` of the layer that the next DispatchSend sends, [hidden], written as it travels to where peers read it:
  // to be called where the row is made, while it is in a cache. Every row has to be told, before that call and after the
  // last layer's CombineReceive. Several threads at once.
  virtual void PutRow(int row, const float* values) = 0;
  // One layer is these five calls in order, with whatever else in between.
  virtual Status DispatchSend(int layer, const DispatchRows& mine) = 0;
  // Waits for the rows of all members. `rows`: by member, then row; valid until CombineSend.
  virtual Status DispatchReceive(int layer, std::span<const ReceivedRow>* rows) = 0;
  // Whether the next DispatchReceive, or CombineReceive, would not wait.
  virtual bool DispatchArrived() = 0;
  virtual bool CombineArrived() = 0;
  // Row i of those received, as fp32 [hidden]. Several threads at once, until CombineSend.
  virtual void Decode(int i, float* out) const = 0;
  // What the experts made of row i, [hidden]. kSummed: once per row, weighted and summed, `choice` 0. kPerExpert: once
  // per choice, unweighted. Every row has to be told. Several threads at once, between DispatchReceive and CombineSend.
  virtual void PutResult(int i, int choice, const float* values) = 0;
  virtual Status CombineSend(int layer) = 0;
  // Waits for the results of the own rows.
  virtual Status CombineReceive(int layer) = 0;
  // out += results of own row `row`, [hidden], in fp32 and in an order that depends on nothing but mode and map.
  // Several threads at once, between CombineReceive and the next DispatchSend.
  virtual void AddResults(int row, float* out) const = 0;

  // Ends every wait of this rank, and the group, for the reason that `guilty` is lost (-1: nobody in particular). Any thread.
  virtual void Abort(int guilty) = 0;
  // Any thread; says something once a call has failed with kGroupLost or `lost` was called.
  virtual GroupLoss loss() const = 0;
  // Any thread.
  virtual ExchangeCounters counters() const = 0;
};

// Why a map cannot be one, naming the expert: every expert has at least one owner, each named once.
Status CheckOwners(const ExpertOwners& owners, size_t experts, int members);

// The member that computes `expert` for row `row` of member `source`: replicas take turns.
int OwnerOf(const ExpertOwners& owners, int expert, int source, int row);

// A group whose members are threads of this process; exchange i is member i's. One member alone is a group as well,
// which sends nothing. `events`: one per member, or none at all.
Result<std::vector<std::unique_ptr<ExpertExchange>>> JoinInProcess(const GroupSpec& spec, int members,
                                                                   std::vector<GroupEvents> events = {});

}  // namespace margay
