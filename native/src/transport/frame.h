// What P and D say to each other about KV pages. Every frame is one FrameHead, little-endian, then `payload_bytes`
// bytes where the type says that they follow.
//
//   P -> D  hello        payload: layout, '\0', model hash; over a Unix socket the descriptor of P's pool comes with it
//   D -> P  welcome
//   P -> D  page         payload: rows [first_row, first_row + rows) of one attention of one block
//   P -> D  mapped page  no payload follows: D copies `payload_bytes` bytes of `source_block` from its mapping
//   D -> P  ack          of `ticket`
//   D -> P  refuse       of `ticket`, with `cause`; ticket 0: of the connection, which D then closes
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "core/kv_memory.h"
#include "transport/kv_transfer.h"

namespace margay {

static_assert(std::endian::native == std::endian::little, "frames travel as they lie in memory");

enum class FrameType : uint16_t { kHello = 1, kWelcome, kPage, kMappedPage, kAck, kRefuse };

inline constexpr uint32_t kFrameMagic = 0x564b474d;  // "MGKV"
inline constexpr uint16_t kFrameVersion = 2;
inline constexpr uint32_t kMaxHelloBytes = 1024;
// A side that owes the rest of a frame, an answer, or room for one, and moves nothing for so long, loses its connection.
inline constexpr int64_t kSilentMs = 10'000;

struct FrameHead {
  uint32_t magic = kFrameMagic;
  uint16_t version = kFrameVersion;
  FrameType type = FrameType::kHello;
  uint32_t payload_bytes = 0;
  uint32_t cause = 0;
  uint64_t ticket = 0;   // of P, returned in the answer
  int64_t epoch = 0;     // of D, as P was told
  SequenceRef sequence;  // of D
  int32_t attention = 0;
  int32_t block = 0;  // logical
  int32_t rows = 0;
  int32_t source_block = 0;
  uint32_t source_generation = 0;
  int32_t first_row = 0;  // in the block
  uint64_t payload_checksum = 0;
  uint64_t head_checksum = 0;  // of everything before it

  void Seal();
  // Why the bytes are not a frame, if so.
  std::optional<FrameRefusal> Fault() const;
};
static_assert(sizeof(FrameHead) == 80 && std::is_trivially_copyable_v<FrameHead>);

std::string HelloText(const KvLayout& layout, const std::string& model_hash);

}  // namespace margay
