// The expert all-to-all between threads, against a plain calculation.
#include <array>

#include "exchange_group.h"

namespace margay {
namespace {

using Group = std::vector<std::unique_ptr<ExpertExchange>>;

Group Join(const GroupSpec& spec, std::vector<GroupEvents> events = {}) {
  auto group = JoinInProcess(spec, static_cast<int>(spec.members.size()), std::move(events));
  if (!group.ok()) {
    std::fprintf(stderr, "%s\n", group.status().message().c_str());
    std::abort();
  }
  return std::move(*group);
}

const char* NameOf(PayloadFormat format) {
  return format == PayloadFormat::kBf16 ? "bf16" : format == PayloadFormat::kFp8 ? "fp8" : "fp32";
}

// Rounding of the payload and of the results, with room for neither.
double ToleranceOf(PayloadFormat format) {
  return format == PayloadFormat::kBf16 ? 1.0 / 128 : format == PayloadFormat::kFp8 ? 1.0 / 10 : 1e-5;
}

std::string AgreesWithPlain(PayloadFormat payload, CombineMode combine, int members) {
  static constexpr std::array kRows = {0, 1, 15, 16, 17, 63, 64, 65};
  GroupSpec spec = SmallSpec(members);
  spec.payload = payload;
  spec.combine = combine;
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
    for (const PayloadFormat payload : {PayloadFormat::kBf16, PayloadFormat::kFp8, PayloadFormat::kFp32}) {
      for (const CombineMode combine : {CombineMode::kSummed, CombineMode::kPerExpert}) {
        const std::string wrong = AgreesWithPlain(payload, combine, members);
        finding.Expect(wrong.empty(), wrong);
      }
    }
  }
  return finding.what();
}

int Run() {
  Claims claims;
  claims.Check("results agree with a plain calculation for 1 to 5 members, all formats and row counts", AllAgree());
  return claims.ExitCode();
}

}  // namespace
}  // namespace margay

int main() { return margay::Run(); }
