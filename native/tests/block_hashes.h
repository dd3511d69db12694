// Hashes of all full blocks of a text, as control-plane/protocol/block-hash.ts has them.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kv/block_hash.h"

namespace margay {

inline std::vector<BlockHash> BlockHashes(const std::string& model_hash, std::span<const int32_t> tokens) {
  std::vector<BlockHash> hashes;
  BlockHash previous = HashRoot(model_hash);
  for (size_t start = 0; start + kBlockTokens <= tokens.size(); start += kBlockTokens) {
    previous = HashNext(previous, tokens.data() + start);
    hashes.push_back(previous);
  }
  return hashes;
}

}  // namespace margay
