// One request in the engine: its tokens, its place in the KV pool, and what is planned for it.
//
//   compute:  runnable -> ended -> closing -> gone
//   receive:  waiting -> received -> runnable -> ended -> closing -> gone      (waiting or received may lapse: closing)
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/sample/sample.h"
#include "kv/kv_pool.h"
#include "transport/kv_transfer.h"

namespace margay {

// FINISH in native/binding/native.ts.
enum class Finish : int32_t { kNone = 0, kStop = 1, kLength = 2, kNumeric = 3, kSkipped = 4 };

// What to open. Values are checked by Engine::OpenSequence.
struct SequenceSpec {
  std::vector<int32_t> tokens;  // prompt, and what earlier attempts generated
  int64_t prompt_length = 0;
  int64_t max_new_tokens = 0;
  int64_t min_new_tokens = 0;
  std::vector<int32_t> stop_tokens;
  SampleParams sampling;    // `banned` is the engine's to fill
  bool receive = false;
  int64_t deadline_ms = 0;  // of a `receive` sequence, epoch milliseconds
  int64_t reserve = 0;      // tokens that blocks are kept for at once
};

struct Sequence {
  enum class Phase : uint8_t { kWaiting, kReceived, kRunnable };

  SequenceRef ref;
  SequenceKvId kv = 0;
  std::span<const int32_t> table;  // physical blocks

  std::vector<int32_t> tokens;  // known: given, then generated
  int given = 0;                // tokens it was opened with
  int prompt_length = 0;        // generated tokens start here
  int token_limit = 0;          // known tokens at which it ends with `length`
  int capacity = 0;             // rows that blocks are kept for; it only grows
  int min_tokens = 0;           // known tokens before which it may not stop
  int cached_tokens = 0;
  int length = 0;  // KV rows written
  SampleParams sampling;
  std::vector<int32_t> stop_tokens;  // end of text among them
  std::vector<int32_t> drafts;       // of the tokens after the known ones, made by its last step; the engine thread's own, as are
  bool drafted = false;              // its last step tried to make some
  float draft_yield = 0;             // drafts that become tokens per step for which it drafted, on average

  // Tokens its next one is chosen among, a bit each. One mask serves one token: the sequence sits out until it has one.
  bool masked = false;
  bool mask_ready = false;
  std::vector<uint32_t> next_mask;
  std::vector<uint32_t> mask;  // of the running step: the engine thread's own

  // What the queued plans, the running one included, will add by rows of their own.
  int planned_rows = 0;
  int planned_tokens = 0;
  bool batched = false;    // decodes in every step
  bool will_run = false;   // is in the batch once the queued plans have begun

  Phase phase = Phase::kRunnable;
  Finish finish = Finish::kNone;
  int64_t deadline_ms = 0;  // while waiting or received
  bool running = false;     // its rows are in the running step: the engine thread reads tokens and table
  bool exporting = false;
  bool closing = false;
  bool keep = false;

  bool ended() const { return finish != Finish::kNone; }

  bool WaitsForMask() const { return masked && !mask_ready; }

  // Has a row in a step of the batch: blocks and a mask are there for it, and all before it is computed.
  bool Decodes() const {
    return !ended() && length < capacity && length + 1 == static_cast<int>(tokens.size()) && !WaitsForMask();
  }

  // True when a step that ends at `length_after` rows computes the last of `known` tokens.
  static bool Produces(int length_after, int known) { return length_after == known; }

  // Whether a token that follows `known` ones ends the text.
  bool Stops(int32_t token, int known) const {
    return known >= min_tokens &&
           std::find(stop_tokens.begin(), stop_tokens.end(), token) != stop_tokens.end();
  }
};

}  // namespace margay
