// A prefill side and a decode side with recognisable rows, for the transfer tests.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "kv/kv_pool.h"
#include "transport/kv_transfer.h"
#include "core/socket.h"

namespace margay {

inline constexpr KvLayout kTestLayout{3, 16, KvType::kF32};  // pages of 4 KiB
inline constexpr char kTestModel[] = "0123456789abcdef";
inline constexpr int64_t kTestEpoch = 41;
// How long the claims wait for what must happen, counted in waits: a test that is stopped for a while (SIGSTOP, a paused
// machine) has not waited meanwhile. Deadlines that are not the point lie beyond any such stop.
inline constexpr int kPatienceMs = 20'000;
inline constexpr int64_t kFarMs = 3'600'000;

template <typename T>
T Must(Result<T> result) {
  if (result.ok()) return std::move(*result);
  std::fprintf(stderr, "unexpected: %s\n", result.status().message().c_str());
  std::abort();
}
inline void Must(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "unexpected: %s\n", status.message().c_str());
  std::abort();
}

// Waits for what other threads or processes do. False after kPatienceMs.
inline bool Eventually(const std::function<bool()>& holds) {
  for (int waited = 0; waited < kPatienceMs; ++waited) {
    if (holds()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return holds();
}

inline std::vector<int32_t> TokensFrom(int first, int count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Outcomes as they are told, from any thread.
class Outcomes {
 public:
  OnTransfer Listener() {
    return [this](const TransferOutcome& outcome) {
      std::lock_guard lock(mutex_);
      told_.push_back(outcome);
      changed_.notify_all();
    };
  }
  // The only outcome of the sequence, or one with cause "never told" or "told twice".
  TransferOutcome Of(SequenceRef sequence) {
    std::unique_lock lock(mutex_);
    TransferOutcome found;
    found.cause = "never told";
    for (int waited = 0; waited < kPatienceMs && CountOf(sequence) == 0; waited += kSliceMs) {
      changed_.wait_for(lock, std::chrono::milliseconds(kSliceMs));
    }
    for (const TransferOutcome& outcome : told_) {
      if (Same(outcome.sequence, sequence)) found = outcome;
    }
    if (CountOf(sequence) > 1) found.cause = "told twice";
    return found;
  }
  size_t count() {
    std::lock_guard lock(mutex_);
    return told_.size();
  }

 private:
  static constexpr int kSliceMs = 100;
  static bool Same(SequenceRef a, SequenceRef b) { return a.slot == b.slot && a.generation == b.generation; }
  int CountOf(SequenceRef sequence) const {
    int count = 0;
    for (const TransferOutcome& outcome : told_) count += Same(outcome.sequence, sequence) ? 1 : 0;
    return count;
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<TransferOutcome> told_;
};

// One pool, and rows that tell whose they are.
struct PoolSide {
  explicit PoolSide(int blocks = 64, const KvLayout& layout = kTestLayout)
      : pool(Must(KvPool::Create(layout, blocks, kTestModel))) {}

  static float Value(int seed, int attention, int row, int column) {
    return static_cast<float>(seed * 1'000'003 + attention * 100'003 + row * 101 + column);
  }
  float* Row(SequenceKvId id, int attention, int row) const {
    const KvMemory memory = pool->memory();
    const int32_t block = pool->BlockTable(id)[static_cast<size_t>(row / kBlockTokens)];
    return reinterpret_cast<float*>(memory.page(attention, block) +
                                    static_cast<size_t>(row % kBlockTokens) * memory.layout.row_bytes());
  }
  void Write(SequenceKvId id, int seed, int attention, int from, int to) const {
    for (int row = from; row < to; ++row) {
      float* values = Row(id, attention, row);
      for (int column = 0; column < pool->memory().layout.row_values; ++column) {
        values[column] = Value(seed, attention, row, column);
      }
    }
  }
  // Empty, or the first row that is not `seed`'s.
  std::string Compare(SequenceKvId id, int seed, int from, int to) const {
    const KvLayout layout = pool->memory().layout;
    for (int attention = 0; attention < layout.attentions; ++attention) {
      for (int row = from; row < to; ++row) {
        const float* values = Row(id, attention, row);
        for (int column = 0; column < layout.row_values; ++column) {
          if (values[column] != Value(seed, attention, row, column)) {
            return "row " + std::to_string(row) + " of attention " + std::to_string(attention) + " is not the sender's";
          }
        }
      }
    }
    return "";
  }
  int Count(BlockState state) const { return pool->Counts()[static_cast<size_t>(state)]; }
  // Free and cached blocks only, and nothing broken.
  std::string AtRest() const {
    const std::string broken = pool->CheckInvariants();
    if (!broken.empty()) return broken;
    const int resting = Count(BlockState::kFree) + Count(BlockState::kCached);
    return resting == pool->memory().blocks ? "" : std::to_string(pool->memory().blocks - resting) + " blocks are held";
  }

  const std::unique_ptr<KvPool> pool;
};

struct Decoder : PoolSide {
  explicit Decoder(bool shared_memory = true, int blocks = 64, const KvLayout& layout = kTestLayout,
                   const std::string& model = kTestModel)
      : PoolSide(blocks, layout),
        receiver(Must(KvReceiver::Create(pool.get(), model, "127.0.0.1", 0, shared_memory, outcomes.Listener()))) {
    receiver->SetEpoch(kTestEpoch);
  }
  // Reserves and expects; `tokens` decide what the cache knows of them.
  SequenceKvId Expect(SequenceRef sequence, const std::vector<int32_t>& tokens, int64_t wait_ms = kFarMs) {
    const OpenedKv opened = Must(pool->Open(tokens, static_cast<int>(tokens.size()), KvUse::kReceive));
    Must(receiver->Expect(sequence, opened.id, opened.cached_tokens, static_cast<int>(tokens.size()),
                          NowMs() + wait_ms));
    cached_tokens = opened.cached_tokens;
    return opened.id;
  }
  void Drop(SequenceRef sequence, SequenceKvId id, bool keep = false) {
    receiver->Forget(sequence);
    pool->Close(id, keep);
  }
  SendTarget Target(SequenceRef sequence, bool shared_memory, int64_t wait_ms = kFarMs) const {
    return {"127.0.0.1", receiver->port(), shared_memory, kTestEpoch, sequence, cached_tokens, NowMs() + wait_ms};
  }

  Outcomes outcomes;
  int cached_tokens = 0;  // of the last Expect
  std::unique_ptr<KvReceiver> receiver;
};

struct Prefiller : PoolSide {
  explicit Prefiller(int blocks = 64, const KvLayout& layout = kTestLayout, const std::string& model = kTestModel)
      : PoolSide(blocks, layout), sender(Must(KvSender::Create(pool.get(), model, outcomes.Listener()))) {}

  SequenceKvId Open(const std::vector<int32_t>& tokens) {
    return Must(pool->Open(tokens, static_cast<int>(tokens.size()), KvUse::kCompute)).id;
  }
  // Computes rows [from, to) as an engine does: attention by attention, then the block states.
  void Compute(SequenceRef sequence, SequenceKvId id, int seed, const std::vector<int32_t>& tokens, int from, int to) {
    for (int attention = 0; attention < pool->memory().layout.attentions; ++attention) {
      Write(id, seed, attention, from, to);
      sender->Written(sequence, attention, to);
    }
    pool->Advance(id, tokens, to);
  }

  Outcomes outcomes;
  std::unique_ptr<KvSender> sender;
};

}  // namespace margay
