// A decoder layer's order as data: its stages, what each reads and writes, and which it waits for (spec 2.1, 12.2).
//
// The experts' branch starts at the first half's post-attention norm and joins at the layer's end. Between ranks it is cut
// into sends, which return at once, and receives; the dense path runs while rows travel:
//
//   project 0  attend 0  route  send | dense mlp 0  project 1 | receive  experts  send | attend 1  dense mlp 1 | receive  join
//   report:       stage 1            |        stage 2         |        stage 3         |        stage 4        |
//
// model.cc runs the stages by NextStage: the first one in this order whose waits have ended. A receive whose rows are
// still on their way is put off while another stage can run, so a rank waits only when nothing is left to do.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace margay {

enum class Stage : uint8_t {
  kProject0,
  kAttend0,
  kRoute,
  kDispatchSend,
  kMlp0,
  kProject1,
  kDispatchReceive,
  kExperts,
  kCombineSend,
  kAttend1,
  kMlp1,
  kCombineReceive,
  kJoin,
};
inline constexpr size_t kStages = 13;

// What outlives a stage. Scratch that a stage leaves to nobody is not listed.
enum class Value : uint8_t {
  kStream,      // x, with what is pending to be added to it
  kQueries,     // of one half, and its KV rows
  kBranch,      // n of the first half: what router, experts, identity experts and its dense MLP read
  kNormed,      // n of the second half
  kChoices,     // experts and weights of every row
  kDispatched,  // this rank's rows, for the peers to read
  kReceived,    // the peers' rows for this rank's experts
  kOutputs,     // of this rank's experts
  kCombined,    // outputs of the peers' rows, for them to read
  kReturned,    // the peers' outputs of this rank's rows
};

// Sets of stages and of values, a bit each.
using StageSet = uint32_t;
using ValueSet = uint32_t;
template <typename... Stages>
constexpr StageSet These(Stages... stages) {
  return ((StageSet{1} << static_cast<int>(stages)) | ... | 0U);
}
inline constexpr StageSet kAllStages = (StageSet{1} << kStages) - 1;

// What a stage has to do with the peers of the group; kNone: nothing, and a rank alone has these stages only.
enum class Traffic : uint8_t { kNone, kSend, kReceive };

struct StageFacts {
  Stage stage;
  const char* name;  // in traces
  StageSet waits;    // for these to end; those that they wait for are not repeated
  ValueSet reads;
  ValueSet writes;
  Traffic traffic = Traffic::kNone;
};

using LayerSchedule = std::array<StageFacts, kStages>;

// A stage that begins reads and writes in place what it lists in both.
inline constexpr LayerSchedule kLayerSchedule = {{
    {Stage::kProject0, "project", These(), These(Value::kStream), These(Value::kStream, Value::kQueries)},
    {Stage::kAttend0, "attend", These(Stage::kProject0), These(Value::kStream, Value::kQueries),
     These(Value::kStream, Value::kBranch, Value::kDispatched)},
    {Stage::kRoute, "route", These(Stage::kAttend0), These(Value::kBranch), These(Value::kChoices)},
    {Stage::kDispatchSend, "dispatch send", These(Stage::kRoute), These(Value::kChoices, Value::kDispatched),
     These(Value::kDispatched), Traffic::kSend},
    {Stage::kMlp0, "dense mlp", These(Stage::kAttend0), These(Value::kStream, Value::kBranch), These(Value::kStream)},
    {Stage::kProject1, "project", These(Stage::kMlp0), These(Value::kStream), These(Value::kStream, Value::kQueries)},
    {Stage::kDispatchReceive, "dispatch receive", These(Stage::kDispatchSend), These(Value::kDispatched),
     These(Value::kReceived), Traffic::kReceive},
    {Stage::kExperts, "experts", These(Stage::kRoute, Stage::kDispatchReceive),
     These(Value::kBranch, Value::kChoices, Value::kReceived), These(Value::kOutputs)},
    {Stage::kCombineSend, "combine send", These(Stage::kExperts), These(Value::kReceived, Value::kOutputs),
     These(Value::kCombined), Traffic::kSend},
    {Stage::kAttend1, "attend", These(Stage::kProject1), These(Value::kStream, Value::kQueries),
     These(Value::kStream, Value::kNormed)},
    {Stage::kMlp1, "dense mlp", These(Stage::kAttend1), These(Value::kStream, Value::kNormed), These(Value::kStream)},
    {Stage::kCombineReceive, "combine receive", These(Stage::kCombineSend), These(Value::kCombined),
     These(Value::kReturned), Traffic::kReceive},
    {Stage::kJoin, "join shortcut", These(Stage::kMlp1, Stage::kExperts, Stage::kCombineReceive),
     These(Value::kStream, Value::kBranch, Value::kChoices, Value::kOutputs, Value::kReturned), These(Value::kStream)},
}};

// Stages that a rank alone does without.
inline constexpr StageSet kTrafficStages = [] {
  StageSet stages = 0;
  for (const StageFacts& facts : kLayerSchedule) stages |= facts.traffic != Traffic::kNone ? These(facts.stage) : 0;
  return stages;
}();

// The stage to run when those in `ended` have: the first that may, receives whose rows are there before those that would
// wait. arrived(stage): whether the rows of a receive are there.
template <typename Arrived>
constexpr const StageFacts& NextStage(const LayerSchedule& schedule, StageSet ended, const Arrived& arrived) {
  const StageFacts* waiting = nullptr;
  for (const StageFacts& facts : schedule) {
    if ((ended & These(facts.stage)) != 0 || (facts.waits & ~ended) != 0) continue;
    if (facts.traffic != Traffic::kReceive || arrived(facts.stage)) return facts;
    if (waiting == nullptr) waiting = &facts;
  }
  return *waiting;
}

}  // namespace margay
