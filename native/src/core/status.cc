#include "core/status.h"

namespace margay {

const char* CodeName(Code code) {
  switch (code) {
    case Code::kOk: return "ok";
    case Code::kStaleHandle: return "stale_handle";
    case Code::kNoSlot: return "no_slot";
    case Code::kNoBlocks: return "no_blocks";
    case Code::kTooLong: return "too_long";
    case Code::kBadState: return "bad_state";
    case Code::kBadArgument: return "bad_argument";
    case Code::kQueueFull: return "queue_full";
    case Code::kCheckpoint: return "checkpoint";
    case Code::kIo: return "io";
    case Code::kClosed: return "closed";
    case Code::kGroupLost: return "group_lost";
  }
  return "unknown";
}

}  // namespace margay
