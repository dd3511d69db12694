// drafts recorded FOLDER GOLDEN: the draft layer over recorded prompts, cut in several ways, against recorded logits.
// drafts plain FOLDER GOLDEN:    the draft layer, also fed with its own hidden states, against plain_draft.h.
// One JSON line per backend and cut:
//
//   max_diff       largest difference of a logit
//   argmax_wrong   rows whose arg-max differs although the wanted margin exceeds 3e-2
//   rows           rows that were compared
//   same_as_whole  bits equal those of the whole-prompt run of the same backend; `plain`: the last row's are the same
//                  when its logits alone are asked for
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "golden_file.h"
#include "model/model.h"
#include "plain_draft.h"

namespace margay::tests {
namespace {

constexpr float kMargin = 3e-2F;

std::unique_ptr<Model> Load(const std::string& folder, const std::string& path, float latent_eps) {
  ModelOptions options;
  options.folder = folder;
  options.backend = path == "ref" ? BackendKind::kRef : BackendKind::kCpu;
  options.isa = path == "ref" ? "" : path;
  options.latent_norm_eps = latent_eps;
  options.deterministic = true;
  options.draft = true;
  return OrDie(Model::Load(options));
}

std::vector<std::string> Paths() {
  std::vector<std::string> paths = {"ref"};
  for (const std::string& isa : CpuIsas()) paths.push_back(isa);
  return paths;
}

// One sequence on one model: its pool holds rows of the target and of the draft layer.
class Drafter {
 public:
  Drafter(Model* model, int tokens)
      : model_(model), vocab_(static_cast<size_t>(model->facts().vocab_size)) {
    const int blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
    for (int block = blocks - 1; block >= 0; --block) table_.push_back(block);
    bytes_.assign(model->facts().kv.block_bytes() * static_cast<size_t>(blocks), std::byte{0xff});
    kv_ = {bytes_.data(), model->facts().kv, blocks};
  }

  // Logits of the draft layer for all rows of `tokens` but the last, `chunk` rows per step (0: all).
  std::vector<float> Feed(const std::vector<int32_t>& tokens, int chunk) {
    const auto rows = static_cast<int>(tokens.size()) - 1;
    std::vector<float> logits(static_cast<size_t>(rows) * vocab_);
    for (int at = 0; at < rows;) {
      const int count = chunk == 0 ? rows : std::min(chunk, rows - at);
      const SequenceRows target{&tokens[static_cast<size_t>(at)], count, at, table_.data(), 0};
      OrDie(model_->Forward({&target, 1}, kv_, nullptr, nullptr));
      Draft(&tokens[static_cast<size_t>(at) + 1], count, at, 0, &logits[static_cast<size_t>(at) * vocab_]);
      at += count;
    }
    return logits;
  }

  // Logits of the last row alone: the others end with their KV.
  std::vector<float> FeedForLast(const std::vector<int32_t>& tokens) {
    const auto rows = static_cast<int>(tokens.size()) - 1;
    std::vector<float> logits(vocab_);
    const SequenceRows target{tokens.data(), rows, 0, table_.data(), 0};
    OrDie(model_->Forward({&target, 1}, kv_, nullptr, nullptr));
    const DraftRows draft{{tokens.data() + 1, rows, 0, table_.data(), 1}, 0};
    OrDie(model_->Draft({&draft, 1}, kv_, nullptr, logits.data()));
    return logits;
  }

  void Draft(const int32_t* next, int count, int position, int source, float* logits) {
    const DraftRows rows{{next, count, position, table_.data(), count}, source};
    int told = -1;
    OrDie(model_->Draft({&rows, 1}, kv_, [&](int attention) { told = attention; }, logits));
    if (told != model_->facts().attentions - 1) OrDie(Status(Code::kBadState, "the draft layer's rows were not told"));
  }

 private:
  Model* const model_;
  const size_t vocab_;
  std::vector<int32_t> table_;
  std::vector<std::byte> bytes_;
  KvMemory kv_;
};

struct Difference {
  double max_diff = 0;
  int argmax_wrong = 0;
  int rows = 0;

  template <typename Number>
  void Add(const Number* want, const float* got, size_t vocab) {
    ++rows;
    for (size_t v = 0; v < vocab; ++v) {
      const double diff = std::fabs(double{want[v]} - double{got[v]});
      max_diff = std::isnan(diff) ? INFINITY : std::max(max_diff, diff);
    }
    const auto best = std::max_element(want, want + vocab) - want;
    const auto mine = std::max_element(got, got + vocab) - got;
    argmax_wrong += mine != best && double{want[best]} - double{want[mine]} > double{kMargin} ? 1 : 0;
  }
  void Print(const std::string& path, int chunk, bool same) const {
    std::printf("{\"path\":\"%s\",\"chunk\":%d,\"max_diff\":%g,\"argmax_wrong\":%d,\"rows\":%d,\"same_as_whole\":%s}\n",
                path.c_str(), chunk, max_diff, argmax_wrong, rows, same ? "true" : "false");
    std::fflush(stdout);
  }
};

int Recorded(const std::string& folder, const std::string& golden_path) {
  const GoldenFile golden(golden_path);
  const int chunks[] = {0, 64, 7, 1};
  std::vector<std::vector<int32_t>> routing(std::size(chunks));  // as ref chose
  for (const std::string& path : Paths()) {
    const std::unique_ptr<Model> model = Load(folder, path, -1);
    const auto vocab = static_cast<size_t>(model->facts().vocab_size);
    std::vector<std::vector<float>> whole;
    for (size_t c = 0; c < std::size(chunks); ++c) {
      Difference difference;
      bool same = true;
      std::vector<int32_t> chosen;
      model->ForceRouting(path == "ref" ? nullptr : &routing[c], path == "ref" ? &chosen : nullptr);
      for (size_t i = 0; golden.Has("case" + std::to_string(i) + ".tokens"); ++i) {
        std::vector<int64_t> shape;
        const std::string stem = "case" + std::to_string(i);
        const auto tokens = golden.Read<int32_t>(stem + ".tokens", &shape);
        const auto want = golden.Read<float>(stem + ".mtp_logits", &shape);
        const std::vector<float> got = Drafter(model.get(), static_cast<int>(tokens.size())).Feed(tokens, chunks[c]);
        for (size_t row = 0; row < static_cast<size_t>(shape[0]); ++row) {
          difference.Add(&want[row * vocab], &got[got.size() - want.size() + row * vocab], vocab);
        }
        if (c == 0) whole.push_back(got);
        same = same && std::memcmp(got.data(), whole[i].data(), got.size() * sizeof(float)) == 0;
      }
      if (path == "ref") routing[c] = chosen;
      difference.Print(path, chunks[c], same);
    }
  }
  return 0;
}

int Plain(const std::string& folder, const std::string& golden_path) {
  constexpr double kLatentEps = 1e-6;  // of the recorded hidden states
  constexpr int kSteps = 3;
  const GoldenFile golden(golden_path);
  std::vector<int64_t> shape;
  const auto all_tokens = golden.Read<int32_t>("tokens", &shape);
  const auto length = static_cast<size_t>(shape[1]);
  const std::vector<int32_t> tokens(all_tokens.begin(), all_tokens.begin() + shape[1]);
  const auto hidden_values = golden.Read<float>("hidden", &shape);
  const auto width = static_cast<size_t>(shape[2]);
  std::vector<Numbers> hidden;
  for (size_t i = 0; i < length; ++i) {
    hidden.emplace_back(hidden_values.begin() + static_cast<std::ptrdiff_t>(i * width),
                        hidden_values.begin() + static_cast<std::ptrdiff_t>((i + 1) * width));
  }
  PlainDraft plain(folder, kLatentEps);
  for (const std::string& path : Paths()) {
    const std::unique_ptr<Model> model = Load(folder, path, static_cast<float>(kLatentEps));
    const auto vocab = static_cast<size_t>(model->facts().vocab_size);
    Difference difference;
    bool same = true;
    for (const size_t rows : {size_t{1}, size_t{2}, size_t{31}, size_t{62}, size_t{64}, length - kSteps}) {
      const std::vector<int32_t> known(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(rows) + 1);
      const std::vector<float> last = Drafter(model.get(), static_cast<int>(length)).FeedForLast(known);
      Drafter drafter(model.get(), static_cast<int>(length));
      std::vector<float> logits = drafter.Feed(known, 0);
      logits.erase(logits.begin(), logits.end() - static_cast<std::ptrdiff_t>(vocab));
      same = same && last == logits;
      std::vector<Numbers> states(hidden.begin(), hidden.begin() + static_cast<std::ptrdiff_t>(rows));
      std::vector<int32_t> next(known.begin() + 1, known.end());
      for (int step = 0; step < kSteps; ++step) {
        states.push_back(plain.Hidden(states, next));
        difference.Add(plain.Logits(states.back()).data(), logits.data(), vocab);
        next.push_back((next.back() * 7 + 3) % static_cast<int32_t>(vocab));
        if (step + 1 == kSteps) break;
        const int position = static_cast<int>(next.size()) - 1;
        drafter.Draft(&next.back(), 1, position, step == 0 ? static_cast<int>(rows) - 1 : 0, logits.data());
      }
    }
    difference.Print(path, 0, same);
  }
  return 0;
}

}  // namespace
}  // namespace margay::tests

int main(int argc, char** argv) {
  const std::string mode = argc == 4 ? argv[1] : "";
  if (mode == "recorded") return margay::tests::Recorded(argv[2], argv[3]);
  if (mode == "plain") return margay::tests::Plain(argv[2], argv[3]);
  std::fprintf(stderr, "usage: drafts recorded|plain FOLDER GOLDEN\n");
  return 2;
}
