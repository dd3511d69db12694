#include "kv/block_hash.h"

#include <algorithm>
#include <bit>

#include "core/sha256.h"

namespace margay {
namespace {

static_assert(std::endian::native == std::endian::little, "tokens are hashed as they lie in memory");

BlockHash Cut(const Sha256::Digest& digest) {
  BlockHash hash;
  std::copy_n(digest.begin(), hash.size(), hash.begin());
  return hash;
}

}  // namespace

BlockHash HashRoot(const std::string& model_hash) {
  Sha256 sha;
  sha.Update("margay-kv-1");
  sha.Update(model_hash);
  return Cut(sha.Finish());
}

BlockHash HashNext(const BlockHash& previous, const int32_t* tokens) {
  Sha256 sha;
  sha.Update(previous.data(), previous.size());
  sha.Update(tokens, kBlockTokens * sizeof(int32_t));
  return Cut(sha.Finish());
}

}  // namespace margay
