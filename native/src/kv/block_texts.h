// Owns which tokens the blocks hold, and an order of those that others may read: of all listed blocks with the same past,
// the one that shares most leading tokens with a given text stands next to where that text would stand.
//
//   written (row by row, as they are computed) -> listed -> written anew
//
// T1 a listed block's text does not change
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <iterator>
#include <set>
#include <span>
#include <vector>

#include "kv/block_hash.h"

namespace margay {

class BlockTexts {
 public:
  using Text = std::span<const int32_t>;

  struct Match {
    int32_t block = -1;
    int rows = 0;  // leading tokens that are equal
  };

  explicit BlockTexts(int blocks)
      : entries_(static_cast<size_t>(blocks)),
        tokens_(static_cast<size_t>(blocks) * kBlockTokens),
        order_(Order{this}) {}
  BlockTexts(const BlockTexts&) = delete;
  BlockTexts& operator=(const BlockTexts&) = delete;

  // Tokens of rows [row, row + tokens.size()), all within the block.
  void Write(int32_t block, int row, Text tokens) {
    std::copy(tokens.begin(), tokens.end(), tokens_.begin() + At(block) + row);
  }
  // The first `rows` may be read by whoever has the same past, `parent`.
  void List(int32_t block, const BlockHash& parent, int rows) {
    entries_[static_cast<size_t>(block)] = {parent, rows};
    order_.insert(block);
  }
  void Unlist(int32_t block) { order_.erase(block); }
  size_t listed() const { return order_.size(); }
  int rows(int32_t block) const { return entries_[static_cast<size_t>(block)].rows; }
  Text Of(int32_t block, int rows) const { return Text(tokens_).subspan(static_cast<size_t>(At(block)), rows); }

  // The listed block that shares most leading tokens with `text` after the past `parent`.
  Match Longest(const BlockHash& parent, Text text) const {
    const auto after = order_.lower_bound(Probe{parent, text});
    Match best;
    if (after != order_.end()) best = {*after, Shared(*after, parent, text)};
    if (after != order_.begin()) {
      const int32_t before = *std::prev(after);
      if (const int rows = Shared(before, parent, text); rows > best.rows) best = {before, rows};
    }
    return best.rows > 0 ? best : Match{};
  }
  // The neighbour whose whole text is the beginning of this block's; -1: none.
  int32_t Beginning(int32_t block) const {
    const auto at = order_.find(block);
    if (at == order_.begin()) return -1;
    const int32_t before = *std::prev(at);
    const Entry& mine = entries_[static_cast<size_t>(block)];
    return Shared(before, mine.parent, Of(block, mine.rows)) == rows(before) ? before : -1;
  }

 private:
  struct Entry {
    BlockHash parent{};
    int rows = 0;
  };
  struct Probe {
    const BlockHash& parent;
    Text text;
  };
  struct Order {
    using is_transparent = void;
    const BlockTexts* texts;

    Probe Of(int32_t block) const {
      const Entry& entry = texts->entries_[static_cast<size_t>(block)];
      return {entry.parent, texts->Of(block, entry.rows)};
    }
    static std::strong_ordering Compare(const Probe& a, const Probe& b) {
      if (const auto parents = a.parent <=> b.parent; parents != 0) return parents;
      return std::lexicographical_compare_three_way(a.text.begin(), a.text.end(), b.text.begin(), b.text.end());
    }
    bool operator()(int32_t a, int32_t b) const {
      const auto compared = Compare(Of(a), Of(b));
      return compared == 0 ? a < b : compared < 0;
    }
    bool operator()(int32_t a, const Probe& b) const { return Compare(Of(a), b) < 0; }
    bool operator()(const Probe& a, int32_t b) const { return Compare(a, Of(b)) < 0; }
  };

  static std::ptrdiff_t At(int32_t block) { return static_cast<std::ptrdiff_t>(block) * kBlockTokens; }
  int Shared(int32_t block, const BlockHash& parent, Text text) const {
    const Entry& entry = entries_[static_cast<size_t>(block)];
    if (entry.parent != parent) return 0;
    const Text mine = Of(block, entry.rows);
    return static_cast<int>(std::mismatch(mine.begin(), mine.end(), text.begin(), text.end()).first - mine.begin());
  }

  std::vector<Entry> entries_;
  std::vector<int32_t> tokens_;
  std::set<int32_t, Order> order_;
};

}  // namespace margay
