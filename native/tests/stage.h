// A decode side in the middle of a transfer, every byte of its pool marked.
#pragma once

#include <cstring>
#include <string>

#include "kv_sides.h"
#include "raw_peer.h"

namespace margay {

inline constexpr int kStageTokens = 200;  // four blocks, the last with 8 rows; block 0 is in the cache

class Stage {
 public:
  explicit Stage(int64_t wait_ms = kFarMs) {
    const auto tokens = TokensFrom(0, kStageTokens);
    const SequenceKvId before = Must(decoder.pool->Open(TokensFrom(0, 64), 64, KvUse::kCompute)).id;
    decoder.pool->Advance(before, tokens, 64);
    decoder.pool->Close(before, true);
    Mark();
    id = decoder.Expect(sequence, tokens, wait_ms);
  }
  void Mark() const {
    const KvMemory memory = decoder.pool->memory();
    std::memset(memory.base, 0x5a, memory.layout.block_bytes() * static_cast<size_t>(memory.blocks));
  }
  uint64_t Refused(FrameRefusal cause) const {
    return decoder.receiver->counters().refused[static_cast<size_t>(cause)];
  }
  // Empty when no byte of the pool was written.
  std::string Untouched() const { return UntouchedBut(nullptr); }
  // Of a page in mid arrival its own place may be written, nothing else; it is nobody's to read.
  std::string UntouchedBut(int attention, int logical) const {
    if (decoder.Count(BlockState::kSealed) > 0) return "a block is readable";
    const int32_t block = decoder.pool->BlockTable(id)[static_cast<size_t>(logical)];
    return UntouchedBut(decoder.pool->memory().page(attention, block));
  }
  RawPeer Greeted() const {
    RawPeer peer = RawPeer::Tcp(decoder.receiver->port());
    peer.Greet();
    if (peer.Heard() != "welcome") std::abort();
    return peer;
  }

  const SequenceRef sequence{4, 7};
  Decoder decoder;
  SequenceKvId id = 0;

 private:
  std::string UntouchedBut(const std::byte* page) const {
    const KvMemory memory = decoder.pool->memory();
    const size_t bytes = memory.layout.block_bytes() * static_cast<size_t>(memory.blocks);
    for (size_t i = 0; i < bytes; ++i) {
      const std::byte* at = memory.base + i;
      const bool exempt = page != nullptr && at >= page && at < page + memory.layout.page_bytes();
      if (!exempt && *at != std::byte{0x5a}) return "byte " + std::to_string(i) + " of the pool was written";
    }
    return "";
  }
};

}  // namespace margay
