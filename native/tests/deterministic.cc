// deterministic FOLDER: claims about deterministic mode. On `ref` and every code path of this machine the logits of all
// positions and the KV rows of some sequences are compared, to the bit, with those of each sequence alone, whole, on
// one thread.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "claim.h"
#include "golden_file.h"
#include "model/model.h"

namespace margay::tests {
namespace {

constexpr int kSequences = 16;
constexpr int kMostRows = 512;

int Length(int sequence) { return sequence == 0 ? 420 : 3 + sequence * 37 % 71; }

// Sequences 1 and 2 begin alike and share their first block of pages.
std::vector<int32_t> Tokens(int sequence, int vocab) {
  std::vector<int32_t> tokens(static_cast<size_t>(std::max(Length(sequence), kBlockTokens + 9)));
  uint32_t random = 77;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i == kBlockTokens || (i == 0 && sequence > 2)) random += static_cast<uint32_t>(sequence) * 7919;
    random = random * 1664525 + 1013904223;
    tokens[i] = static_cast<int32_t>(random >> 8) % vocab;
  }
  return tokens;
}

// The sequences of one model, each as far as it was computed.
class Run {
 public:
  explicit Run(Model* model) : model_(model), facts_(model->facts()) {
    int blocks = 0;
    for (int s = 0; s < kSequences; ++s) {
      tokens_.push_back(Tokens(s, facts_.vocab_size));
      std::vector<int32_t>& table = tables_.emplace_back((tokens_.back().size() + kBlockTokens - 1) / kBlockTokens);
      for (int32_t& block : table) block = blocks++;
      logits_.emplace_back(tokens_.back().size() * static_cast<size_t>(facts_.vocab_size));
    }
    tables_[2][0] = tables_[1][0];
    at_.resize(kSequences);
    pool_.resize(facts_.kv.block_bytes() * static_cast<size_t>(blocks), std::byte{0xff});
    kv_ = {pool_.data(), facts_.kv, blocks};
  }

  int left(int sequence) const { return static_cast<int>(tokens_[Index(sequence)].size()) - at_[Index(sequence)]; }

  // One step: counts[i] rows of sequences[i].
  void Step(const std::vector<int>& sequences, const std::vector<int>& counts) {
    std::vector<SequenceRows> rows;
    size_t total = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const size_t s = Index(sequences[i]);
      rows.push_back({&tokens_[s][static_cast<size_t>(at_[s])], counts[i], at_[s], tables_[s].data(), counts[i]});
      total += static_cast<size_t>(counts[i]);
    }
    std::vector<float> logits(total * Vocab());
    OrDie(model_->Forward(rows, kv_, nullptr, logits.data()));
    const float* from = logits.data();
    for (size_t i = 0; i < sequences.size(); ++i) {
      const size_t s = Index(sequences[i]);
      const size_t size = static_cast<size_t>(counts[i]) * Vocab();
      std::memcpy(&logits_[s][static_cast<size_t>(at_[s]) * Vocab()], from, size * sizeof(float));
      from += size;
      at_[s] += counts[i];
    }
  }

  void Alone(int sequence, int chunk) {
    while (left(sequence) > 0) Step({sequence}, {std::min(chunk, left(sequence))});
  }

  // All together; in each step a sequence brings from 1 to `most` rows.
  void Together(int most) {
    for (int round = 0;; ++round) {
      std::vector<int> members;
      std::vector<int> counts;
      for (int s = 0; s < kSequences; ++s) {
        if (left(s) == 0) continue;
        members.push_back(s);
        counts.push_back(std::min(left(s), 1 + (round * 5 + s) % most));
      }
      if (members.empty()) return;
      Step(members, counts);
    }
  }

  // Empty, or the first sequence whose logits or KV rows differ.
  std::string Differs(const Run& other) const {
    for (int sequence = 0; sequence < kSequences; ++sequence) {
      const size_t s = Index(sequence);
      const auto upto = static_cast<size_t>(at_[s]);
      if (upto == 0) continue;
      const std::string who = "sequence " + std::to_string(sequence);
      for (size_t i = 0; i < upto; ++i) {
        const size_t first = i * Vocab();
        if (std::memcmp(&logits_[s][first], &other.logits_[s][first], Vocab() * sizeof(float)) != 0) {
          return "the logits of " + who + " at position " + std::to_string(i) + " differ";
        }
        for (int attention = 0; attention < facts_.attentions; ++attention) {
          if (std::memcmp(KvRow(s, attention, i), other.KvRow(s, attention, i), facts_.kv.row_bytes()) == 0) continue;
          return "the KV of " + who + " at position " + std::to_string(i) + ", attention " + std::to_string(attention) + " differs";
        }
      }
    }
    return "";
  }

 private:
  static size_t Index(int sequence) { return static_cast<size_t>(sequence); }
  size_t Vocab() const { return static_cast<size_t>(facts_.vocab_size); }
  const std::byte* KvRow(size_t sequence, int attention, size_t position) const {
    const int32_t block = tables_[sequence][position / kBlockTokens];
    return kv_.page(attention, block) + position % kBlockTokens * facts_.kv.row_bytes();
  }

  Model* const model_;
  const ModelFacts facts_;
  std::vector<std::vector<int32_t>> tokens_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<std::vector<float>> logits_;  // per sequence [tokens, vocab]
  std::vector<int> at_;
  std::vector<std::byte> pool_;
  KvMemory kv_;
};

std::unique_ptr<Model> Load(const std::string& folder, const std::string& path, int threads, bool deterministic = true) {
  ModelOptions options;
  options.folder = folder;
  options.backend = path == "ref" ? BackendKind::kRef : BackendKind::kCpu;
  options.isa = path == "ref" ? "" : path;
  options.threads = threads;
  options.max_rows = kMostRows;
  options.deterministic = deterministic;
  return OrDie(Model::Load(options));
}

void CheckPath(const std::string& folder, const std::string& path, Claims* claims) {
  const std::unique_ptr<Model> model = Load(folder, path, 1);
  const std::unique_ptr<Model> threaded = Load(folder, path, 2);
  Run whole(model.get());
  for (int s = 0; s < kSequences; ++s) whole.Alone(s, kMostRows);
  const auto claim = [&](const std::string& what, const Run& run) { claims->Check(path + ": " + what, run.Differs(whole)); };
  Run chunks(model.get());
  chunks.Alone(0, 7);
  claim("chunks of 7 give the bits of chunks of 512", chunks);
  Run tokens(model.get());
  for (int s = 1; s < 4; ++s) tokens.Alone(s, 1);
  claim("token by token gives the bits of a whole prompt", tokens);
  Run verified(model.get());
  for (int s = 1; s < 4; ++s) verified.Alone(s, 2);
  claim("two rows of a sequence at a time give the bits of a whole prompt", verified);
  Run batch(model.get());
  batch.Together(1);
  claim("16 sequences decoded together give the bits of each alone", batch);
  Run mixed(model.get());
  mixed.Together(32);
  claim("long and short pieces of 16 sequences in one step give the bits of each alone", mixed);
  Run threads(threaded.get());
  for (int s = 0; s < kSequences; ++s) threads.Alone(s, kMostRows);
  claim("two threads give the bits of one", threads);
  Run threaded_batch(threaded.get());
  threaded_batch.Together(19);
  claim("two threads over 16 sequences give the bits of one thread over each", threaded_batch);

  Finding hashes;
  const std::string hash = model->facts().model_hash;
  hashes.Expect(hash == threaded->facts().model_hash, "engines that differ in threads would not");
  hashes.Expect(hash != Load(folder, path, 1, false)->facts().model_hash, "an engine of normal mode would");
  claims->Check(path + ": exchanges pages with engines whose rows are equal to the bit, and no others", hashes.what());
}

int Main(const std::string& folder) {
  Claims claims;
  CheckPath(folder, "ref", &claims);
  for (const std::string& isa : CpuIsas()) CheckPath(folder, isa, &claims);
  return claims.ExitCode();
}

}  // namespace
}  // namespace margay::tests

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: deterministic FOLDER\n");
    return 2;
  }
  return margay::tests::Main(argv[1]);
}
