// The expert all-to-all between processes, over shared memory, TCP and both.
#include "rank_processes.h"

namespace margay {
namespace {

// One key per letter: equal letters share memory.
GroupSpec On(const std::string& hosts) {
  GroupSpec spec = SmallSpec(static_cast<int>(hosts.size()));
  for (size_t member = 0; member < hosts.size(); ++member) {
    spec.members[member].rank_id = "rank-" + std::to_string(member);
    spec.members[member].host_key = "host-" + std::string(1, hosts[member]);
  }
  spec.model = "model";
  spec.secret = "secret";
  spec.join_deadline_ms = 30'000;
  return spec;
}

// Steps of two layers with ever other row counts; in some steps the odd members only join.
std::string RunSteps(const GroupSpec& spec, ExpertExchange* exchange, int steps) {
  static constexpr std::array kRows = {0, 1, 15, 16, 17, 63, 64, 65};
  const double tolerance = spec.payload == PayloadFormat::kFp8 ? 0.1 : spec.payload == PayloadFormat::kBf16 ? 1.0 / 128 : 1e-5;
  for (int step = 0; step < steps; ++step) {
    if (Status began = exchange->BeginStep(); !began.ok()) return began.message();
    for (int layer = 0; layer < 2; ++layer) {
      const bool idle = step % 3 == 2 && spec.self % 2 == 1;
      const int rows = idle ? 0 : kRows[static_cast<size_t>(step + spec.self * 3) % kRows.size()];
      const RowsOf mine = MakeRows(spec, rows, static_cast<uint64_t>(step * 100 + layer * 10 + spec.self));
      std::vector<float> out;
      if (Status ran = RunLayer(spec, exchange, layer, mine, &out); !ran.ok()) return ran.message();
      const double error = ErrorOf(PlainLayer(spec, mine), out);
      if (!(error <= tolerance)) return "error " + std::to_string(error) + " with " + std::to_string(rows) + " rows";
    }
  }
  return "";
}

std::string JoinAndRun(const GroupSpec& spec, ExchangeEndpoint* endpoint, int steps) {
  auto exchange = endpoint->Join(spec, {});
  if (!exchange.ok()) return exchange.status().message();
  std::string found = RunSteps(spec, exchange->get(), steps);
  // Nobody leaves before all have had everything: a last step without rows.
  if (found.empty() && (*exchange)->BeginStep().ok()) {
    std::vector<float> out;
    (void)RunLayer(spec, exchange->get(), 0, MakeRows(spec, 0, 0), &out);
  }
  return found;
}

std::string Agrees(const std::string& hosts) {
  Finding finding;
  for (const PayloadFormat payload : {PayloadFormat::kBf16, PayloadFormat::kFp8, PayloadFormat::kFp32}) {
    for (const CombineMode combine : {CombineMode::kSummed, CombineMode::kPerExpert}) {
      GroupSpec spec = On(hosts);
      spec.payload = payload;
      spec.combine = combine;
      RankProcesses ranks(spec, [](const GroupSpec& of, ExchangeEndpoint* endpoint) { return JoinAndRun(of, endpoint, 9); });
      const std::string found = ranks.Found();
      finding.Expect(found.empty(), hosts + ", payload " + std::to_string(static_cast<int>(payload)) + ": " + found);
    }
  }
  return finding.what();
}

int Run() {
  Claims claims;
  for (const std::string hosts : {"aa", "aaaa"}) claims.Check(std::to_string(hosts.size()) + " processes agree over shared memory", Agrees(hosts));
  for (const std::string hosts : {"ab", "abcd"}) claims.Check(std::to_string(hosts.size()) + " processes agree over TCP", Agrees(hosts));
  claims.Check("5 processes on two hosts agree", Agrees("aabab"));
  return claims.ExitCode();
}

}  // namespace
}  // namespace margay

int main() { return margay::Run(); }
