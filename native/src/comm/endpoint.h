// Where a rank is met by the others of its group: listens for the life of the process, joins one group after the other.
//
//   open -> (joining -> joined -> left)* -> closed
//
// E1 of every two members the one with the higher index makes the connection
// E2 members with one host key share memory (unless the spec forbids it), others talk over TCP
// E3 who cannot prove to be a member of this very group is refused, told why, and counted
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "comm/exchange.h"
#include "core/status.h"

namespace margay {

// Why a greeting was refused.
enum class GreetingRefusal : uint8_t {
  kMalformed,     // no greeting, or one that was meant for another member
  kStaleEpoch,    // of an earlier group
  kEarlyEpoch,    // of a later group, which this rank has yet to join: worth another try
  kUnproven,      // its sender does not know the secret
  kIncompatible,  // another model, map, shape or version
  kDuplicate,     // that member is connected already
};
inline constexpr int kGreetingRefusals = 6;
const char* GreetingRefusalName(GreetingRefusal cause);

using GreetingRefusals = std::array<uint64_t, kGreetingRefusals>;

class ExchangeEndpoint {
 public:
  // `host` is the address to listen at; port 0: any that is free.
  static Result<std::unique_ptr<ExchangeEndpoint>> Open(const std::string& host, int port);
  virtual ~ExchangeEndpoint() = default;
  virtual int port() const = 0;
  // Meets the other members; returns when all are connected, with kGroupLost after join_deadline_ms, or with kBadArgument.
  // One group at a time; the exchange has to go before the endpoint.
  virtual Result<std::unique_ptr<ExpertExchange>> Join(const GroupSpec& spec, GroupEvents events) = 0;
  // Makes a Join that is under way, or else the next one, return with kGroupLost. Any thread.
  virtual void StopJoining() = 0;
  // Any thread.
  virtual GreetingRefusals refused() const = 0;
};

}  // namespace margay
