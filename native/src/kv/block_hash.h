// Content hash of full blocks, chained: a block's hash names the block and everything before it.
//
//   h(-1) = SHA-256("margay-kv-1" || model_hash)[0..16)
//   h(i)  = SHA-256(h(i-1) || 64 tokens of block i as LE int32)[0..16)
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string>

#include "core/kv_memory.h"

namespace margay {

using BlockHash = std::array<uint8_t, 16>;

// For hash tables: any eight bytes of it are as good as random.
struct BlockHashBytes {
  size_t operator()(const BlockHash& hash) const {
    size_t value;
    std::memcpy(&value, hash.data(), sizeof value);
    return value;
  }
};

BlockHash HashRoot(const std::string& model_hash);
// `tokens`: kBlockTokens of them.
BlockHash HashNext(const BlockHash& previous, const int32_t* tokens);

}  // namespace margay
