// The expert all-to-all between threads, against a plain calculation.
#include <array>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "exchange_group.h"

namespace margay {
namespace {

using Group = std::vector<std::unique_ptr<ExpertExchange>>;
using Outputs = std::vector<std::vector<float>>;

constexpr std::array kFormats = {PayloadFormat::kBf16, PayloadFormat::kFp8, PayloadFormat::kFp32};
constexpr std::array kModes = {CombineMode::kSummed, CombineMode::kPerExpert};

Group Join(const GroupSpec& spec, std::vector<GroupEvents> events = {}) {
  auto group = JoinInProcess(spec, static_cast<int>(spec.members.size()), std::move(events));
  if (!group.ok()) {
    std::fprintf(stderr, "%s\n", group.status().message().c_str());
    std::abort();
  }
  return std::move(*group);
}

GroupSpec SpecOf(int members, PayloadFormat payload, CombineMode combine) {
  GroupSpec spec = SmallSpec(members);
  spec.payload = payload;
  spec.combine = combine;
  return spec;
}

const char* NameOf(PayloadFormat format) {
  return format == PayloadFormat::kBf16 ? "bf16" : format == PayloadFormat::kFp8 ? "fp8" : "fp32";
}

// What rounding of payload and results may cost.
double ToleranceOf(PayloadFormat format) {
  return format == PayloadFormat::kBf16 ? 1.0 / 128 : format == PayloadFormat::kFp8 ? 1.0 / 10 : 1e-5;
}

// One step of one layer for every member; outputs by member.
Outputs RunOnce(const GroupSpec& spec, const Group& group, const std::vector<RowsOf>& rows, Finding* finding) {
  Outputs outs(group.size());
  std::vector<std::string> wrong(group.size());
  OnEach(static_cast<int>(group.size()), [&](int member) {
    const auto m = static_cast<size_t>(member);
    Status ran = group[m]->BeginStep();
    if (ran.ok()) ran = RunLayer(spec, group[m].get(), 0, rows[m], &outs[m]);
    wrong[m] = ran.message();
  });
  for (const std::string& one : wrong) finding->Expect(one.empty(), one);
  return outs;
}

void Compare(const GroupSpec& spec, const std::vector<RowsOf>& rows, const Outputs& outs, const std::string& name, Finding* finding) {
  for (size_t member = 0; member < rows.size(); ++member) {
    const double error = ErrorOf(PlainLayer(spec, rows[member]), outs[member]);
    finding->Expect(error <= ToleranceOf(spec.payload), name + ": error " + std::to_string(error));
  }
}

// Members run on their own, layer after layer, each with another number of rows.
std::string AgreesWithPlain(PayloadFormat payload, CombineMode combine, int members) {
  static constexpr std::array kRows = {0, 1, 15, 16, 17, 63, 64, 65};
  const GroupSpec spec = SpecOf(members, payload, combine);
  const Group group = Join(spec);
  std::vector<std::string> wrong(static_cast<size_t>(members));
  OnEach(members, [&](int member) {
    Finding finding;
    ExpertExchange* exchange = group[static_cast<size_t>(member)].get();
    for (int step = 0; step < 8 && !finding.any(); ++step) {
      finding.Expect(exchange->BeginStep().ok(), "a step does not begin");
      for (int layer = 0; layer < 3 && !finding.any(); ++layer) {
        const int rows = kRows[static_cast<size_t>(step + member * 3) % kRows.size()];
        const RowsOf mine = MakeRows(spec, rows, static_cast<uint64_t>(step * 100 + layer * 10 + member));
        std::vector<float> out;
        const Status ran = RunLayer(spec, exchange, layer, mine, &out);
        finding.Expect(ran.ok(), ran.message());
        const double error = ErrorOf(PlainLayer(spec, mine), out);
        finding.Expect(error <= ToleranceOf(payload), "error " + std::to_string(error) + " with " + std::to_string(rows) + " rows");
      }
    }
    wrong[static_cast<size_t>(member)] = finding.what();
  });
  for (const std::string& one : wrong) {
    if (!one.empty()) return std::string(NameOf(payload)) + ", " + std::to_string(members) + " members: " + one;
  }
  return "";
}

std::string AllAgree() {
  Finding finding;
  for (int members = 1; members <= 5; ++members) {
    for (const PayloadFormat payload : kFormats) {
      for (const CombineMode combine : kModes) {
        const std::string wrong = AgreesWithPlain(payload, combine, members);
        finding.Expect(wrong.empty(), wrong);
      }
    }
  }
  return finding.what();
}

std::string UglySpreads() {
  Finding finding;
  for (const CombineMode combine : kModes) {
    GroupSpec spec = SpecOf(3, PayloadFormat::kBf16, combine);
    // All experts but one at the last member, none but that one at the first.
    for (size_t expert = 0; expert < spec.owners.size(); ++expert) spec.owners[expert] = {expert == 3 ? 0 : 2};
    const Group group = Join(spec);
    std::vector<RowsOf> rows;
    for (int member = 0; member < 3; ++member) rows.push_back(MakeRows(spec, 80, static_cast<uint64_t>(member)));
    Compare(spec, rows, RunOnce(spec, group, rows, &finding), "uneven", &finding);
    for (RowsOf& of : rows) {
      for (int32_t& expert : of.chosen) expert = 10 + expert % 4;
    }
    const ExchangeCounters before = group[0]->counters();
    Compare(spec, rows, RunOnce(spec, group, rows, &finding), "zero-computation experts alone", &finding);
    finding.Same("rows sent for them", group[0]->counters().rows_sent, before.rows_sent);
    for (RowsOf& of : rows) of = MakeRows(spec, 0, 0);
    RunOnce(spec, group, rows, &finding);
    // Every row wants the same member.
    for (int member = 0; member < 3; ++member) {
      rows[static_cast<size_t>(member)] = MakeRows(spec, 80, static_cast<uint64_t>(member));
      for (size_t i = 0; i < rows[static_cast<size_t>(member)].chosen.size(); ++i) {
        rows[static_cast<size_t>(member)].chosen[i] = static_cast<int32_t>(i % 4 + 4);
      }
    }
    Compare(spec, rows, RunOnce(spec, group, rows, &finding), "all at one member", &finding);
  }
  return finding.what();
}

struct Bytes {
  uint64_t dispatched = 0, combined = 0;
};

// Counted anew from the choices: a row once for every rank it touches beside its own, every choice once.
std::vector<Bytes> CountBytes(const GroupSpec& spec, const std::vector<RowsOf>& rows, uint64_t row_bytes, uint64_t result_bytes) {
  const size_t members = rows.size();
  std::vector<Bytes> bytes(members);
  for (size_t member = 0; member < members; ++member) {
    for (int row = 0; row < rows[member].rows; ++row) {
      std::vector<uint64_t> choices(members);
      for (int k = 0; k < spec.topk; ++k) {
        const auto expert = static_cast<size_t>(rows[member].chosen[static_cast<size_t>(row * spec.topk + k)]);
        if (expert < spec.owners.size()) ++choices[static_cast<size_t>(spec.owners[expert][0])];
      }
      for (size_t rank = 0; rank < members; ++rank) {
        if (rank == member || choices[rank] == 0) continue;
        bytes[member].dispatched += row_bytes + choices[rank] * (4 + 4);
        bytes[rank].combined += (spec.combine == CombineMode::kSummed ? 1 : choices[rank]) * result_bytes;
      }
    }
  }
  return bytes;
}

std::string BytesAreExact() {
  Finding finding;
  for (const PayloadFormat payload : kFormats) {
    for (const CombineMode combine : kModes) {
      const GroupSpec spec = SpecOf(4, payload, combine);
      const Group group = Join(spec);
      std::vector<RowsOf> rows;
      for (int member = 0; member < 4; ++member) rows.push_back(MakeRows(spec, member == 2 ? 0 : 33 + member, static_cast<uint64_t>(member)));
      RunOnce(spec, group, rows, &finding);
      // 136 values: two scales of four bytes in fp8.
      const uint64_t row_bytes = payload == PayloadFormat::kBf16 ? 272 : payload == PayloadFormat::kFp8 ? 144 : 544;
      const std::vector<Bytes> wanted = CountBytes(spec, rows, row_bytes, payload == PayloadFormat::kFp32 ? 544 : 272);
      for (size_t member = 0; member < 4; ++member) {
        finding.Same("dispatched bytes", group[member]->counters().dispatch_bytes, wanted[member].dispatched);
        finding.Same("combined bytes", group[member]->counters().combine_bytes, wanted[member].combined);
      }
    }
  }
  return finding.what();
}

// The first member's rows, whoever computes them.
std::string SameBits() {
  Finding finding;
  for (const PayloadFormat payload : kFormats) {
    std::vector<float> first;
    for (int members = 1; members <= 5; ++members) {
      for (const bool replicas : {false, true}) {
        GroupSpec spec = SpecOf(members, payload, CombineMode::kPerExpert);
        if (replicas) {
          for (auto& owners : spec.owners) owners = {owners[0], (owners[0] + 1) % members};
          if (members == 1) continue;
        }
        const Group group = Join(spec);
        std::vector<RowsOf> rows;
        for (int member = 0; member < members; ++member) rows.push_back(MakeRows(spec, 41, static_cast<uint64_t>(member)));
        const Outputs outs = RunOnce(spec, group, rows, &finding);
        if (first.empty()) first = outs[0];
        finding.Expect(std::memcmp(first.data(), outs[0].data(), first.size() * sizeof(float)) == 0,
                       std::string(NameOf(payload)) + ": other bits with " + std::to_string(members) + " members");
      }
    }
  }
  return finding.what();
}

std::string ReplicasTakeTurns() {
  GroupSpec spec = SmallSpec(3);
  spec.owners[4] = {0, 1, 2};
  std::array<int, 3> rows{};
  for (int source = 0; source < 3; ++source) {
    for (int row = 0; row < 40; ++row) ++rows[static_cast<size_t>(OwnerOf(spec.owners, 4, source, row))];
  }
  Finding finding;
  for (const int of : rows) finding.Same("rows of one of three replicas", of, 40);
  return finding.what();
}

// Offered to one member after the other; used by all from the same step on.
std::string MapsSwitchTogether() {
  GroupSpec spec = SmallSpec(3);
  const Group group = Join(spec);
  std::array<std::array<uint64_t, 20>, 3> versions{};
  std::array<std::string, 3> wrong;
  OnEach(3, [&](int member) {
    const auto m = static_cast<size_t>(member);
    ExpertExchange* exchange = group[m].get();
    for (int step = 0; step < 20 && wrong[m].empty(); ++step) {
      if (step == 2 + member * 4) wrong[m] = exchange->OfferMap(2, DealtOut(10, 2)).message();
      if (step == 4 + member * 4) {
        ExpertOwners last(10, std::vector<int>{2, 0});
        wrong[m] = exchange->OfferMap(5, last).message();
      }
      const RowsOf mine = MakeRows(spec, 20, static_cast<uint64_t>(step * 10 + member));
      std::vector<float> out;
      Status ran = exchange->BeginStep();
      if (ran.ok()) ran = RunLayer(spec, exchange, 0, mine, &out);
      if (!ran.ok()) wrong[m] = ran.message();
      if (ErrorOf(PlainLayer(spec, mine), out) > 1.0 / 128) wrong[m] = "wrong results";
      versions[m][static_cast<size_t>(step)] = exchange->map_version();
    }
  });
  Finding finding;
  for (const std::string& one : wrong) finding.Expect(one.empty(), one);
  for (size_t step = 0; step < 20; ++step) {
    const uint64_t wanted = step < 10 ? 1 : step < 12 ? 2 : 5;
    for (const auto& of : versions) finding.Same("version in step " + std::to_string(step), of[step], wanted);
  }
  finding.Expect(!group[0]->OfferMap(5, spec.owners).ok(), "an old version is taken");
  return finding.what();
}

// A member that rests is called when a peer begins, and costs nothing until then.
std::string RestsUntilCalled() {
  struct Bell {
    std::mutex mutex;
    std::condition_variable rung;
    int calls = 0;
  };
  GroupSpec spec = SmallSpec(2);
  Bell bell;
  std::vector<GroupEvents> events(2);
  events[1].peer_began = [&] {
    const std::lock_guard lock(bell.mutex);
    ++bell.calls;
    bell.rung.notify_all();
  };
  const Group group = Join(spec, events);
  Finding finding;
  for (int step = 0; step < 20; ++step) {
    finding.Expect(!group[1]->PeerBegan(), "a step that nobody began");
    std::thread other([&] {
      std::vector<float> out;
      if (step % 2 == 0) std::this_thread::yield();
      if (group[0]->BeginStep().ok()) (void)RunLayer(spec, group[0].get(), 0, MakeRows(spec, 3, 1), &out);
    });
    {
      std::unique_lock lock(bell.mutex);
      const int before = bell.calls;
      if (group[1]->Rest()) {
        finding.Expect(bell.rung.wait_for(lock, std::chrono::seconds(30), [&] { return bell.calls > before || group[1]->PeerBegan(); }), "nobody called");
      }
    }
    finding.Expect(group[1]->PeerBegan(), "called for nothing");
    std::vector<float> out;
    finding.Expect(group[1]->BeginStep().ok(), "the step cannot be joined");
    finding.Expect(RunLayer(spec, group[1].get(), 0, MakeRows(spec, 0, 0), &out).ok(), "the step cannot be run");
    other.join();
  }
  return finding.what();
}

std::string AbortEndsWaits() {
  GroupSpec spec = SmallSpec(3);
  std::atomic<int> told{0};
  const GroupEvents events{{}, [&] { ++told; }};
  Group group = Join(spec, {events, events, events});
  Finding finding;
  std::array<Status, 2> outcomes;
  OnEach(3, [&](int member) {
    if (member == 2) {
      group[2]->Abort(1);
      return;
    }
    std::vector<float> out;
    Status ran = group[static_cast<size_t>(member)]->BeginStep();
    if (ran.ok()) ran = RunLayer(spec, group[static_cast<size_t>(member)].get(), 0, MakeRows(spec, 3, 1), &out);
    outcomes[static_cast<size_t>(member)] = ran;
  });
  for (const Status& outcome : outcomes) finding.Same("code", std::string(CodeName(outcome.code())), "group_lost");
  for (const auto& exchange : group) {
    finding.Same("guilty", exchange->loss().guilty, 1);
    finding.Same("cause", std::string(LossCauseName(exchange->loss().cause)), "aborted");
  }
  finding.Same("told", told.load(), 3);
  // One that goes away says so.
  group = Join(spec, {});
  group[1].reset();
  std::vector<float> out;
  Status ran = group[0]->BeginStep();
  if (ran.ok()) ran = RunLayer(spec, group[0].get(), 0, MakeRows(spec, 3, 1), &out);
  finding.Same("cause", std::string(LossCauseName(group[0]->loss().cause)), "left");
  finding.Same("guilty", group[0]->loss().guilty, 1);
  return finding.what();
}

std::string BadCalls() {
  Finding finding;
  const auto refused = [&](const std::string& what, const std::function<void(GroupSpec*)>& spoil) {
    GroupSpec spec = SmallSpec(3);
    spoil(&spec);
    const auto group = JoinInProcess(spec, static_cast<int>(spec.members.size()));
    finding.Same("a group with " + what, group.status().message(), "expert group: " + what);
  };
  refused("expert 3 has no owner", [](GroupSpec* spec) { spec->owners[3].clear(); });
  refused("expert 3 names member 1 twice", [](GroupSpec* spec) { spec->owners[3] = {1, 0, 1}; });
  refused("expert 3 is owned by member 3 of 3", [](GroupSpec* spec) { spec->owners[3] = {3}; });
  refused("11 members for 10 experts", [](GroupSpec* spec) { spec->members.resize(11); });
  refused("max_rows is 65536, must be 1 to 65535", [](GroupSpec* spec) { spec->max_rows = 65536; });
  refused("hidden is 0, must be 1 to 1048576", [](GroupSpec* spec) { spec->hidden = 0; });
  const GroupSpec spec = SmallSpec(1);
  const Group group = Join(spec);
  std::span<const ReceivedRow> rows;
  const auto code = [](const Status& status) { return std::string(CodeName(status.code())); };
  finding.Same("a layer without a step", code(group[0]->DispatchSend(0, {})), "bad_state");
  finding.Expect(group[0]->BeginStep().ok(), "a step does not begin");
  finding.Same("receive before send", code(group[0]->DispatchReceive(0, &rows)), "bad_state");
  finding.Same("too many rows", code(group[0]->DispatchSend(0, MakeRows(spec, 81, 1).Dispatch())), "bad_argument");
  finding.Same("a map of other experts", code(group[0]->OfferMap(2, DealtOut(9, 1))), "bad_argument");
  finding.Expect(group[0]->DispatchSend(0, MakeRows(spec, 8, 1).Dispatch()).ok(), "good rows are refused");
  finding.Same("a step within a layer", code(group[0]->BeginStep()), "bad_state");
  return finding.what();
}

int Run() {
  Claims claims;
  claims.Check("results agree with a plain calculation for 1 to 5 members, all formats and row counts", AllAgree());
  claims.Check("uneven experts, all at one member, zero-computation experts alone and no rows at all", UglySpreads());
  claims.Check("bytes are rows times ranks touched and not one more", BytesAreExact());
  claims.Check("results per expert have the same bits for every group size, map and replica", SameBits());
  claims.Check("replicas take turns", ReplicasTakeTurns());
  claims.Check("a map is used from the same step on by all", MapsSwitchTogether());
  claims.Check("a member that rests is called when a step begins", RestsUntilCalled());
  claims.Check("an abort and a farewell end all waits and name who is guilty", AbortEndsWaits());
  claims.Check("bad groups, maps and calls are refused", BadCalls());
  return claims.ExitCode();
}

}  // namespace
}  // namespace margay

int main() { return margay::Run(); }
