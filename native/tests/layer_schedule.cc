// layer_schedule FOLDER: claims about the order of a layer's stages. What each stage reads and writes tells who has to wait
// for whom; a model run in every order that the waits allow shows that nothing is missing there.
#include <string>
#include <vector>

#include "claim.h"
#include "golden_file.h"
#include "model/layer_schedule.h"
#include "rank_group.h"

namespace margay::tests {
namespace {

// What every stage waits for, itself left out, when those not in `present` are skipped: they pass nothing on.
std::vector<StageSet> Reach(const LayerSchedule& schedule, StageSet present) {
  std::vector<StageSet> reach(kStages);
  for (size_t stage = 0; stage < kStages; ++stage) {
    for (size_t before = 0; before < stage; ++before) {
      if ((schedule[stage].waits & present & (1U << before)) != 0) reach[stage] |= 1U << before | reach[before];
    }
  }
  return reach;
}

std::string Name(const StageFacts& facts) { return facts.name + std::string(" (") + std::to_string(static_cast<int>(facts.stage)) + ")"; }

// Empty, or the first two stages of which neither waits for the other although one writes what the other touches.
std::string MissingWait(const LayerSchedule& schedule, StageSet present) {
  const std::vector<StageSet> reach = Reach(schedule, present);
  for (size_t b = 0; b < kStages; ++b) {
    for (size_t a = 0; a < b; ++a) {
      if ((present & 1U << a) == 0 || (present & 1U << b) == 0) continue;
      const ValueSet both = (schedule[a].writes & (schedule[b].reads | schedule[b].writes)) | (schedule[a].reads & schedule[b].writes);
      if (both != 0 && (reach[b] & 1U << a) == 0) return Name(schedule[b]) + " does not wait for " + Name(schedule[a]);
    }
  }
  if (const size_t last = kStages - 1; (reach[last] | 1U << last) != present) return "the layer ends before one of its stages has";
  return "";
}

constexpr StageSet kAlone = kAllStages & ~kTrafficStages;

std::string ListsStagesInOrder() {
  Finding found;
  ValueSet written = These(Value::kStream);
  for (size_t i = 0; i < kStages; ++i) {
    const StageFacts& facts = kLayerSchedule[i];
    found.Expect(static_cast<size_t>(facts.stage) == i, Name(facts) + " is not at its place");
    found.Expect((facts.waits >> i) == 0, Name(facts) + " waits for one that comes later");
    found.Expect((facts.reads & ~written & ~These(Value::kReceived, Value::kReturned)) == 0, Name(facts) + " reads what nobody wrote");
    written |= facts.writes;
  }
  return found.what();
}

// With one wait less something is missing, for a group or for a rank alone.
std::string EveryWaitIsNeeded() {
  Finding found;
  int waits = 0;
  for (size_t i = 0; i < kStages; ++i) {
    for (size_t before = 0; before < i; ++before) {
      if ((kLayerSchedule[i].waits & 1U << before) == 0) continue;
      LayerSchedule less = kLayerSchedule;
      less[i].waits &= ~(1U << before);
      found.Expect(!MissingWait(less, kAllStages).empty() || !MissingWait(less, kAlone).empty(),
                   Name(kLayerSchedule[i]) + " need not wait for " + Name(kLayerSchedule[before]));
      ++waits;
    }
  }
  found.Expect(waits >= static_cast<int>(kStages) - 1, "there are hardly any waits");
  return found.what();
}

std::string PutsOffReceives() {
  Finding found;
  const auto order = [](bool arrived) {
    std::vector<Stage> stages;
    for (StageSet ended = 0; ended != kAllStages;) {
      stages.push_back(NextStage(kLayerSchedule, ended, [&](Stage) { return arrived; }).stage);
      ended |= These(stages.back());
    }
    return stages;
  };
  std::vector<Stage> listed;
  for (const StageFacts& facts : kLayerSchedule) listed.push_back(facts.stage);
  found.Expect(order(true) == listed, "rows that are there are not taken in the schedule's order");
  // Nothing ever arrives by itself: all the dense path runs before the first wait.
  const std::vector<Stage> late = {Stage::kProject0, Stage::kAttend0, Stage::kRoute, Stage::kDispatchSend, Stage::kMlp0,
                                   Stage::kProject1, Stage::kAttend1, Stage::kMlp1, Stage::kDispatchReceive, Stage::kExperts,
                                   Stage::kCombineSend, Stage::kCombineReceive, Stage::kJoin};
  found.Expect(order(false) == late, "a rank waits while it could compute");
  return found.what();
}

// Every order in which the stages of `present` may run.
void Orders(StageSet present, StageSet ended, std::vector<Stage>* order, std::vector<std::vector<Stage>>* all) {
  if (ended == kAllStages) {
    all->push_back(*order);
    return;
  }
  for (const StageFacts& facts : kLayerSchedule) {
    if ((present & These(facts.stage)) == 0 || (ended & These(facts.stage)) != 0 || (facts.waits & ~ended) != 0) continue;
    order->push_back(facts.stage);
    Orders(present, ended | These(facts.stage), order, all);
    order->pop_back();
  }
}

std::vector<std::vector<Stage>> Orders(StageSet present) {
  std::vector<Stage> order;
  std::vector<std::vector<Stage>> all;
  Orders(present, kAllStages & ~present, &order, &all);
  return all;
}

constexpr int kRanks = 2;

// Two ranks run different orders in the same step.
std::string AnyOrderGivesTheSameBits(const std::string& folder, const std::string& path, bool together) {
  const std::vector<std::vector<Stage>> orders = Orders(together ? kAllStages : kAlone);
  std::vector<std::unique_ptr<Model>> models;
  for (int rank = 0; rank < (together ? kRanks : 1); ++rank) models.push_back(LoadRank(folder, path, true));
  const std::vector<std::vector<int32_t>> prompts = {TokensOf(1, 21, 512), TokensOf(2, 9, 512), TokensOf(3, 33, 512)};
  const auto run = [&](size_t number) {
    for (size_t rank = 0; rank < models.size(); ++rank) {
      models[rank]->ForceOrder(number == 0 ? nullptr : &orders[(number * (rank + 1) * 7) % orders.size()]);
    }
    return RunTogether(models, prompts, {.chunks = {16}, .owners = UnevenOwners(models[0]->facts().experts, kRanks)});
  };
  const std::vector<std::vector<float>> wanted = run(0);
  Finding found;
  found.Expect(orders.size() >= (together ? 100U : 10U), "there are only " + std::to_string(orders.size()) + " orders");
  constexpr size_t kTried = 60;  // of those of two ranks, evenly spread
  for (size_t number = 1; number <= orders.size() && !found.any(); number += 1 + orders.size() / kTried) {
    found.Expect(run(number) == wanted, "the " + std::to_string(number) + "th order gives other logits");
  }
  return found.what();
}

int Main(const std::string& folder) {
  Claims claims;
  claims.Check("every stage stands after those it waits for, and reads what was written", ListsStagesInOrder());
  claims.Check("no wait is missing between stages of a group", MissingWait(kLayerSchedule, kAllStages));
  claims.Check("no wait is missing where a rank is alone and exchanges nothing", MissingWait(kLayerSchedule, kAlone));
  claims.Check("no wait could be left out", EveryWaitIsNeeded());
  claims.Check("a receive is put off while something else can run", PutsOffReceives());
  for (const std::string& path : {std::string("ref"), CpuIsas().back()}) {
    claims.Check(path + ": a rank alone computes the same bits in every order that the waits allow",
                 AnyOrderGivesTheSameBits(folder, path, false));
    claims.Check(path + ": two ranks compute the same bits in every order that the waits allow",
                 AnyOrderGivesTheSameBits(folder, path, true));
  }
  return claims.ExitCode();
}

}  // namespace
}  // namespace margay::tests

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: layer_schedule FOLDER\n");
    return 2;
  }
  return margay::tests::Main(argv[1]);
}
