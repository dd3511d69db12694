// A link between two hosts, as arithmetic: when do bytes that were handed to it count as arrived? For tests and
// benchmarks, which impose it at the receiver of a faster link, so that one host stands for two. It reads no clock and
// waits for nothing; one model is one direction into one receiver, shared by all who send there. Not synchronised.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace margay {

class LinkModel {
 public:
  // `bytes_per_s` > 0, may be infinite; `latency_ns` >= 0 from the last byte's departure to its arrival.
  LinkModel(double bytes_per_s, int64_t latency_ns) : ns_per_byte_(1e9 / bytes_per_s), latency_ns_(latency_ns) {}

  // Bytes handed over at `now_ns`, on whatever clock the caller has: they leave behind all that was handed over before,
  // at the link's rate. When the last of them arrives; never earlier than the bytes before them. For byte k of a
  // message, carry the message in pieces.
  int64_t Carry(int64_t now_ns, size_t bytes) {
    if (now_ns >= free_ns()) {
      busy_since_ns_ = now_ns;
      bytes_ = 0;
    }
    bytes_ += bytes;
    return free_ns() + latency_ns_;
  }

  // From when on bytes handed over leave at once.
  int64_t free_ns() const {
    return busy_since_ns_ + static_cast<int64_t>(std::ceil(static_cast<double>(bytes_) * ns_per_byte_));
  }

 private:
  const double ns_per_byte_;
  const int64_t latency_ns_;
  // Counted from the start of each busy time, so that no rounding adds up over many small messages.
  int64_t busy_since_ns_ = INT64_MIN / 2;
  uint64_t bytes_ = 0;
};

}  // namespace margay
