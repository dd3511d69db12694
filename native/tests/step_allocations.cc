// step_allocations FOLDER: claims that a step of the cpu backend allocates nothing once the largest one has run.
#include <atomic>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "claim.h"
#include "golden_file.h"
#include "model/model.h"

namespace {
std::atomic<bool> counting{false};
std::atomic<int> allocations{0};

void* Take(std::size_t bytes, std::size_t alignment) {
  if (counting.load()) ++allocations;
  void* const memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) std::abort();
  return memory;
}
}  // namespace

// Every form of new of this program; the sized and array forms of delete end in the plain one.
void* operator new(std::size_t bytes) { return Take(bytes, alignof(std::max_align_t)); }
void* operator new[](std::size_t bytes) { return Take(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) { return Take(bytes, static_cast<std::size_t>(alignment)); }
void* operator new[](std::size_t bytes, std::align_val_t alignment) { return Take(bytes, static_cast<std::size_t>(alignment)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace margay::tests {
namespace {

constexpr int kSequences = 16;
constexpr int kMostRows = 256;

class Steps {
 public:
  explicit Steps(Model* model) : model_(model), vocab_(static_cast<size_t>(model->facts().vocab_size)) {
    const KvLayout& layout = model->facts().kv;
    constexpr int kBlocksEach = 5;
    pool_.resize(layout.block_bytes() * kSequences * kBlocksEach);
    kv_ = {pool_.data(), layout, kSequences * kBlocksEach};
    table_.resize(kSequences * kBlocksEach);
    for (size_t i = 0; i < table_.size(); ++i) table_[i] = static_cast<int32_t>(i);
    for (int i = 0; i < kMostRows; ++i) tokens_.push_back(i * 37 % model->facts().vocab_size);
    logits_.resize(kSequences * vocab_);
    rows_.reserve(kSequences);
    drafts_.reserve(kSequences);
  }

  // Allocations of one step of `sequences` with `rows` each behind `position` rows, and of a draft from it.
  int Count(int sequences, int rows, int position) {
    rows_.clear();
    drafts_.clear();
    for (int s = 0; s < sequences; ++s) {
      rows_.push_back({tokens_.data(), rows, position, &table_[static_cast<size_t>(s * 5)], 1});
      drafts_.push_back({rows_.back(), s * rows});
    }
    allocations = 0;
    counting = true;
    const Status computed = model_->Forward(rows_, kv_, nullptr, logits_.data());
    const Status drafted = model_->facts().drafts ? model_->Draft(drafts_, kv_, nullptr, logits_.data()) : Status::Ok();
    counting = false;
    OrDie(computed);
    OrDie(drafted);
    return allocations;
  }

 private:
  Model* const model_;
  const size_t vocab_;
  std::vector<std::byte> pool_;
  KvMemory kv_;
  std::vector<int32_t> table_;
  std::vector<int32_t> tokens_;
  std::vector<SequenceRows> rows_;
  std::vector<DraftRows> drafts_;
  std::vector<float> logits_;
};

std::string CountsThemselves() {
  Finding found;
  allocations = 0;
  counting = true;
  const std::vector<int> some(3, 1);
  const auto apart = std::make_unique<Steps*>(nullptr);
  counting = false;
  found.Same("allocations", allocations.load(), some.size() == 3 && apart != nullptr ? 2 : 0);
  return found.what();
}

std::string Checked(const std::string& folder, const std::string& isa, bool deterministic) {
  Finding found;
  ModelOptions options;
  options.folder = folder;
  options.isa = isa;
  options.threads = 2;
  options.max_rows = kMostRows;
  options.deterministic = deterministic;
  const std::unique_ptr<Model> model = OrDie(Model::Load(options));
  Steps steps(model.get());
  steps.Count(kSequences, kMostRows / kSequences, 250);
  for (const int sequences : {1, 3, kSequences}) {
    for (const int rows : {1, 2, kMostRows / kSequences}) {
      for (const int position : {0, 61, 250}) {
        found.Same("allocations of " + std::to_string(sequences) + " sequences by " + std::to_string(rows) + " rows after " +
                       std::to_string(position),
                   steps.Count(sequences, rows, position), 0);
      }
    }
  }
  return found.what();
}

}  // namespace
}  // namespace margay::tests

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: step_allocations FOLDER\n");
    return 2;
  }
  margay::Claims claims;
  claims.Check("allocations are counted", margay::tests::CountsThemselves());
  for (const std::string& isa : margay::CpuIsas()) {
    claims.Check(isa + ": a step allocates nothing", margay::tests::Checked(argv[1], isa, false));
    claims.Check(isa + ": nor does a deterministic one", margay::tests::Checked(argv[1], isa, true));
  }
  return claims.ExitCode();
}
