// Owns which content is cached where, and what changed since somebody last asked.
//
// P1 a hash names at most one block of the pool
// P2 told is whether content is cached at all; where it is makes no difference
// P3 Take() tells net changes: a hash stored and removed in between is not told
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kv/kv_pool.h"

namespace margay {

class PrefixIndex {
 public:
  // Block of the pool that holds the content, or -1.
  int32_t Find(const BlockHash& hash) const {
    const auto found = places_.find(hash);
    return found == places_.end() ? -1 : found->second.block;
  }
  bool InTier(const BlockHash& hash) const {
    const auto found = places_.find(hash);
    return found != places_.end() && found->second.tier;
  }
  // False when the pool has the content already.
  bool Insert(const BlockHash& hash, int32_t block) {
    Place& place = Open(hash);
    if (place.block >= 0) return false;
    place.block = block;
    ++blocks_;
    return true;
  }
  void Erase(const BlockHash& hash) {
    const auto found = places_.find(hash);
    if (found == places_.end() || found->second.block < 0) return;
    found->second.block = -1;
    --blocks_;
    CloseIfEmpty(found);
  }
  void SetTier(const BlockHash& hash, bool there) {
    if (there) {
      Open(hash).tier = true;
      return;
    }
    const auto found = places_.find(hash);
    if (found == places_.end()) return;
    found->second.tier = false;
    CloseIfEmpty(found);
  }
  // Blocks of the pool.
  size_t size() const { return blocks_; }

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
    list.reserve(places_.size() * sizeof(BlockHash));
    for (const auto& [hash, place] : places_) list.insert(list.end(), hash.begin(), hash.end());
    return list;
  }

 private:
  struct Place {
    int32_t block = -1;
    bool tier = false;
  };
  using Places = std::unordered_map<BlockHash, Place, BlockHashBytes>;

  Place& Open(const BlockHash& hash) {
    const auto [at, is_new] = places_.try_emplace(hash);
    if (is_new) Note(hash, true);
    return at->second;
  }
  void CloseIfEmpty(Places::iterator at) {
    if (at->second.block >= 0 || at->second.tier) return;
    Note(at->first, false);
    places_.erase(at);
  }
  // A hash alternates between there and gone, so a second change cancels the first.
  void Note(const BlockHash& hash, bool stored) {
    if (changes_.erase(hash) == 0) changes_.emplace(hash, stored);
  }

  Places places_;
  size_t blocks_ = 0;
  std::unordered_map<BlockHash, bool, BlockHashBytes> changes_;
};

}  // namespace margay
