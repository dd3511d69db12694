// What ranks of a group say to each other over sockets, little-endian. A connection begins with a Greeting from the one
// who made it and one in answer, each with a descriptor of the own outbox over a Unix socket; then come frames, a
// FrameHead each and the bytes it tells of.
//
//   begin     a step; between ranks that share memory only to one that rests
//   dispatch  `entries` entries of the list for the receiver, then the `rows` rows they name, each once, by rising number
//   combine   `rows` result rows
//   waits     what the sender has been waiting for for long
//   left      the group is lost for the sender
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "comm/endpoint.h"
#include "core/sha256.h"

namespace margay {

static_assert(std::endian::native == std::endian::little, "frames travel as they lie in memory");

enum class GreetingType : uint16_t { kHello = 1, kWelcome, kRefuse };

struct Greeting {
  static constexpr uint32_t kMagic = 0x5045474d;  // "MGEP"
  static constexpr uint16_t kVersion = 1;

  uint32_t magic = kMagic;
  uint16_t version = kVersion;
  GreetingType type = GreetingType::kHello;
  uint64_t epoch = 0;
  int32_t from = 0;
  int32_t to = 0;
  uint32_t cause = 0;  // kRefuse: a GreetingRefusal
  uint32_t unused = 0;
  Sha256::Digest model{};  // of what has to be the same in every rank of a model
  Sha256::Digest group{};  // of members, map and shape
  Sha256::Digest proof{};  // that the sender knows the group's secret: HMAC-SHA256 of everything before it
};
static_assert(sizeof(Greeting) == 128 && std::is_trivially_copyable_v<Greeting>);

// What every greeting of a rank in a group is made of and checked against.
class GreetingRules {
 public:
  explicit GreetingRules(const GroupSpec& spec);

  Greeting Make(GreetingType type, int to) const;
  // An answer that says no, to whoever asked.
  Greeting Refuse(GreetingRefusal cause) const;
  // Why it is none of a member of this group to this rank, if so. `type`: what is expected.
  std::optional<GreetingRefusal> Fault(const Greeting& greeting, GreetingType type) const;

 private:
  Sha256::Digest Proof(const Greeting& greeting) const;

  const uint64_t epoch_;
  const int self_;
  const int members_;
  const std::string secret_;
  Sha256::Digest model_, group_;
};

enum class FrameKind : uint16_t { kBegin = 1, kDispatch, kCombine, kWaits, kLeft };

struct ExchangeFrame {
  static constexpr uint32_t kMagic = 0x5845474d;  // "MGEX"

  uint32_t magic = kMagic;
  FrameKind kind = FrameKind::kBegin;
  uint16_t from = 0;
  uint64_t epoch = 0;
  uint64_t value = 0;    // begin: the map offered; waits: a Waiting; left: a GroupLoss
  uint32_t number = 0;   // begin: of the step; dispatch, combine: of the layer
  uint32_t layer = 0;
  uint32_t entries = 0;
  uint32_t rows = 0;
  uint64_t bytes = 0;    // that follow
  uint64_t checksum = 0; // of everything before it

  void Seal();
  bool Sound() const;
};
static_assert(sizeof(ExchangeFrame) == 56 && std::is_trivially_copyable_v<ExchangeFrame>);

}  // namespace margay
