#include "transport/frame.h"

#include "core/checksum.h"

namespace margay {

void FrameHead::Seal() { head_checksum = Checksum(this, offsetof(FrameHead, head_checksum)); }

std::optional<FrameRefusal> FrameHead::Fault() const {
  if (magic != kFrameMagic) return FrameRefusal::kMalformed;
  if (head_checksum != Checksum(this, offsetof(FrameHead, head_checksum))) return FrameRefusal::kMalformed;
  if (version != kFrameVersion) return FrameRefusal::kIncompatible;
  return std::nullopt;
}

std::string HelloText(const KvLayout& layout, const std::string& model_hash) {
  return layout.Spell() + '\0' + model_hash;
}

const char* FrameRefusalName(FrameRefusal cause) {
  static constexpr std::array<const char*, kFrameRefusals> kNames = {"checksum",     "truncated",    "stale_epoch",
                                                                     "stale_handle", "unknown_page", "incompatible",
                                                                     "stale_source", "malformed",    "late"};
  return kNames[static_cast<size_t>(cause)];
}

}  // namespace margay
