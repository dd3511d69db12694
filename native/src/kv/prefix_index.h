// Owns which published block holds which content, and what changed since somebody last asked.
//
// P1 a hash names at most one block
// P2 Take() tells net changes: a hash stored and removed in between is not told
#pragma once

#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "kv/kv_pool.h"

namespace margay {

class PrefixIndex {
 public:
  // Block that holds the content, or -1.
  int32_t Find(const BlockHash& hash) const {
    const auto found = blocks_.find(hash);
    return found == blocks_.end() ? -1 : found->second;
  }
  // False when the content is already there.
  bool Insert(const BlockHash& hash, int32_t block) {
    if (!blocks_.emplace(hash, block).second) return false;
    Note(hash, true);
    return true;
  }
  void Erase(const BlockHash& hash) {
    if (blocks_.erase(hash) != 0) Note(hash, false);
  }
  size_t size() const { return blocks_.size(); }

  KvChanges Take() {
    KvChanges changes;
    for (const auto& [hash, stored] : changes_) {
      std::vector<uint8_t>& list = stored ? changes.stored : changes.removed;
      list.insert(list.end(), hash.begin(), hash.end());
    }
    changes_.clear();
    return changes;
  }

  std::vector<uint8_t> All() const {
    std::vector<uint8_t> list;
    list.reserve(blocks_.size() * sizeof(BlockHash));
    for (const auto& [hash, block] : blocks_) list.insert(list.end(), hash.begin(), hash.end());
    return list;
  }

 private:
  struct FirstBytes {
    size_t operator()(const BlockHash& hash) const {
      size_t value;
      std::memcpy(&value, hash.data(), sizeof value);
      return value;
    }
  };

  // A hash alternates between there and gone, so a second change cancels the first.
  void Note(const BlockHash& hash, bool stored) {
    if (changes_.erase(hash) == 0) changes_.emplace(hash, stored);
  }

  std::unordered_map<BlockHash, int32_t, FirstBytes> blocks_;
  std::unordered_map<BlockHash, bool, FirstBytes> changes_;
};

}  // namespace margay
