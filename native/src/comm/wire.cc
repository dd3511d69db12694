#include "comm/wire.h"

#include <algorithm>

#include "core/checksum.h"

namespace margay {
namespace {

// RFC 2104.
Sha256::Digest Hmac(const std::string& secret, const void* data, size_t bytes) {
  std::array<uint8_t, 64> key{};
  if (secret.size() > key.size()) {
    const Sha256::Digest digest = Sha256::Of(secret.data(), secret.size());
    std::copy(digest.begin(), digest.end(), key.begin());
  } else {
    std::copy(secret.begin(), secret.end(), key.begin());
  }
  const auto keyed = [&](uint8_t pad) {
    std::array<uint8_t, 64> block = key;
    for (uint8_t& byte : block) byte ^= pad;
    Sha256 hash;
    hash.Update(block.data(), block.size());
    return hash;
  };
  Sha256 inner = keyed(0x36);
  inner.Update(data, bytes);
  const Sha256::Digest digest = inner.Finish();
  Sha256 outer = keyed(0x5c);
  outer.Update(digest.data(), digest.size());
  return outer.Finish();
}

class Digested {
 public:
  Digested& operator<<(const std::string& text) {
    *this << static_cast<int64_t>(text.size());
    hash_.Update(text);
    return *this;
  }
  Digested& operator<<(int64_t number) {
    hash_.Update(&number, sizeof number);
    return *this;
  }
  Sha256::Digest Finish() { return hash_.Finish(); }

 private:
  Sha256 hash_;
};

Sha256::Digest GroupDigest(const GroupSpec& spec) {
  Digested all;
  all << static_cast<int64_t>(spec.members.size());
  for (const GroupMember& member : spec.members) all << member.rank_id << member.host << member.port << member.host_key;
  all << static_cast<int64_t>(spec.map_version) << static_cast<int64_t>(spec.owners.size());
  for (const std::vector<int>& owners : spec.owners) {
    all << static_cast<int64_t>(owners.size());
    for (const int owner : owners) all << owner;
  }
  all << spec.hidden << spec.topk << spec.max_rows << static_cast<int64_t>(spec.payload) << static_cast<int64_t>(spec.combine);
  all << (spec.shared_memory ? 1 : 0);
  return all.Finish();
}

}  // namespace

const char* GreetingRefusalName(GreetingRefusal cause) {
  static constexpr std::array<const char*, kGreetingRefusals> kNames = {"malformed",       "stale_epoch", "early_epoch", "unproven",
                                                                        "incompatible", "duplicate"};
  return kNames[static_cast<size_t>(cause)];
}

GreetingRules::GreetingRules(const GroupSpec& spec)
    : epoch_(spec.epoch),
      self_(spec.self),
      members_(static_cast<int>(spec.members.size())),
      secret_(spec.secret),
      model_(Sha256::Of(spec.model.data(), spec.model.size())),
      group_(GroupDigest(spec)) {}

Sha256::Digest GreetingRules::Proof(const Greeting& greeting) const {
  return Hmac(secret_, &greeting, offsetof(Greeting, proof));
}

Greeting GreetingRules::Make(GreetingType type, int to) const {
  Greeting greeting;
  greeting.type = type;
  greeting.epoch = epoch_;
  greeting.from = self_;
  greeting.to = to;
  greeting.model = model_;
  greeting.group = group_;
  greeting.proof = Proof(greeting);
  return greeting;
}

Greeting GreetingRules::Refuse(GreetingRefusal cause) const {
  Greeting greeting;
  greeting.type = GreetingType::kRefuse;
  greeting.epoch = epoch_;
  greeting.from = self_;
  greeting.cause = static_cast<uint32_t>(cause);
  return greeting;
}

std::optional<GreetingRefusal> GreetingRules::Fault(const Greeting& greeting, GreetingType type) const {
  if (greeting.magic != Greeting::kMagic || greeting.type != type) return GreetingRefusal::kMalformed;
  if (greeting.version != Greeting::kVersion) return GreetingRefusal::kIncompatible;
  if (greeting.epoch < epoch_) return GreetingRefusal::kStaleEpoch;
  if (greeting.epoch > epoch_) return GreetingRefusal::kEarlyEpoch;
  const Sha256::Digest proof = Proof(greeting);
  uint8_t difference = 0;  // found in the same time wherever it is
  for (size_t i = 0; i < proof.size(); ++i) difference |= proof[i] ^ greeting.proof[i];
  if (difference != 0) return GreetingRefusal::kUnproven;
  if (greeting.to != self_ || greeting.from < 0 || greeting.from >= members_ || greeting.from == self_)
    return GreetingRefusal::kMalformed;
  if (greeting.model != model_ || greeting.group != group_) return GreetingRefusal::kIncompatible;
  return std::nullopt;
}

void ExchangeFrame::Seal() { checksum = Checksum(this, offsetof(ExchangeFrame, checksum)); }

bool ExchangeFrame::Sound() const {
  return magic == kMagic && checksum == Checksum(this, offsetof(ExchangeFrame, checksum));
}

}  // namespace margay
