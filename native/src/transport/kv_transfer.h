// KV pages from a prefill rank to a decode rank: announced by P as they are computed, taken by D (B7).
//
// One connection per (P process, D endpoint), made by P. P sends HELLO (version, model hash, layout), then PAGE frames
// {epoch, reservation handle, attention, logical block, rows, source block, source generation, checksum, length}; over
// shared memory D copies the bytes from its read-only mapping of P's pool (fd passed over a Unix socket) and checks
// source generation before and after the copy, over TCP the bytes follow the frame. D answers ACK or REFUSE{cause} per
// frame; P keeps the pages pinned until acknowledged or past the deadline. frame.h has the bytes.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <variant>

#include "core/status.h"
#include "core/tls.h"
#include "kv/kv_pool.h"

namespace margay {

struct SequenceRef {
  int32_t slot = 0;
  int32_t generation = 0;
};

// Order and names as FRAME_REFUSALS in native/binding/native.ts.
enum class FrameRefusal : uint8_t {
  kChecksum,
  kTruncated,
  kStaleEpoch,
  kStaleHandle,
  kUnknownPage,
  kIncompatible,
  kStaleSource,
  kMalformed,
  kLate,
};
inline constexpr int kFrameRefusals = 9;
const char* FrameRefusalName(FrameRefusal cause);

struct TransferCounters {
  uint64_t pages = 0;
  uint64_t bytes = 0;
  uint64_t duplicates = 0;
  std::array<uint64_t, kFrameRefusals> refused{};
};

// Called from a transport thread.
struct TransferOutcome {
  SequenceRef sequence;  // of the local engine
  bool ok = false;
  std::string cause;  // when not ok: a name of FRAME_REFUSALS, "deadline", "connect", "connection" or "aborted"
  uint64_t pages = 0;
  uint64_t bytes = 0;
  double ms = 0;  // first announcement to last acknowledgement
};
using OnTransfer = std::function<void(const TransferOutcome&)>;

// Decode side: listens, verifies, copies into reserved blocks. With `tls` a peer that comes by TCP has to show a
// certificate of its authority, and everything it sends is encrypted; so with the prefill side.
class KvReceiver {
 public:
  static Result<std::unique_ptr<KvReceiver>> Create(KvPool* pool, const std::string& model_hash,
                                                    const std::string& host, int port, bool allow_shared_memory,
                                                    OnTransfer on_transfer, const TlsFiles& tls = {});
  virtual ~KvReceiver() = default;
  virtual int port() const = 0;
  virtual void SetEpoch(int64_t epoch) = 0;
  // Expects rows [cached_tokens, tokens) of all attentions, as pages of logical blocks [cached_tokens / 64,
  // ceil(tokens / 64)): the first and the last may have fewer than 64 rows. on_transfer is called once: when all are sealed, or on failure (deadline); not after Forget.
  // Every Expect is followed by a Forget, before the sequence is attached or closed.
  virtual Status Expect(SequenceRef sequence, SequenceKvId kv, int cached_tokens, int tokens, int64_t deadline_ms) = 0;
  // No further byte is written for this sequence once it returns (waits for a copy in progress, microseconds). Late
  // frames are then refused as stale. Unknown sequences are passed over.
  virtual void Forget(SequenceRef sequence) = 0;
  virtual TransferCounters counters() const = 0;
};

struct SendTarget {
  std::string host;  // an IP address or "localhost": names are resolved before, not here
  int port = 0;
  bool shared_memory = false;  // same host and allowed
  int64_t epoch = 0;
  SequenceRef remote;
  int cached_tokens = 0;
  int64_t deadline_ms = 0;
};

// Prefill side.
class KvSender {
 public:
  static Result<std::unique_ptr<KvSender>> Create(KvPool* pool, const std::string& model_hash, OnTransfer on_transfer,
                                                  const TlsFiles& tls = {});
  virtual ~KvSender() = default;
  // Registers where the pages of a sequence of `tokens` tokens go. on_transfer is called once for it, unless the sender
  // is destroyed before.
  virtual Status Begin(SequenceRef sequence, SequenceKvId kv, int tokens, const SendTarget& target) = 0;
  // Rows [0, length) of `attention` are written: every page that became full, and the partial last page once length
  // reaches `tokens`, is announced. Never blocks the engine thread. Pages of a prefix hit are announced too, without
  // waiting for a call. Little is announced together: at the latest when the last attention is written. Unknown
  // sequences are passed over.
  virtual void Written(SequenceRef sequence, int attention, int length) = 0;
  // Ends the transfer with cause "aborted"; its blocks are released within a moment, by the transport thread.
  virtual void Abort(SequenceRef sequence) = 0;
  virtual TransferCounters counters() const = 0;
};

// Boot id and IPC identity of this host: equal on two processes that may map each other's memory.
std::string HostKey();

}  // namespace margay
