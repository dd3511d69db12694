// The life of a KV block. The same table as control-plane/protocol/lifecycle.ts; a test compares them.
//
//   prefill:  free -> reserved -> filling -> sealed -> sending -> cached -> free
//   decode:   free -> reserved -> receiving -> sealed -> attached -> cached -> free
#pragma once

#include <array>
#include <cstdint>

namespace margay {

// Order and names as BLOCK_STATES.
enum class BlockState : uint8_t { kFree, kReserved, kFilling, kReceiving, kSealed, kSending, kAttached, kCached };
inline constexpr int kBlockStates = 8;

inline constexpr std::array<const char*, kBlockStates> kBlockStateNames = {
    "free", "reserved", "filling", "receiving", "sealed", "sending", "attached", "cached"};

inline constexpr unsigned StateBit(BlockState state) { return 1u << static_cast<unsigned>(state); }

// Bits of the states that may follow each state: BLOCK_TRANSITIONS.
inline constexpr std::array<unsigned, kBlockStates> kBlockTransitions = {
    StateBit(BlockState::kReserved),
    StateBit(BlockState::kFilling) | StateBit(BlockState::kReceiving) | StateBit(BlockState::kFree),
    StateBit(BlockState::kSealed) | StateBit(BlockState::kFree),
    StateBit(BlockState::kSealed) | StateBit(BlockState::kFree),
    StateBit(BlockState::kSending) | StateBit(BlockState::kAttached) | StateBit(BlockState::kCached) |
        StateBit(BlockState::kFree),
    StateBit(BlockState::kSealed) | StateBit(BlockState::kCached) | StateBit(BlockState::kFree),
    StateBit(BlockState::kFilling) | StateBit(BlockState::kCached) | StateBit(BlockState::kFree),
    StateBit(BlockState::kSending) | StateBit(BlockState::kAttached) | StateBit(BlockState::kFree),
};

inline constexpr bool MayFollow(BlockState from, BlockState to) {
  return (kBlockTransitions[static_cast<size_t>(from)] & StateBit(to)) != 0;
}

inline const char* BlockStateName(BlockState state) { return kBlockStateNames[static_cast<size_t>(state)]; }

}  // namespace margay
