#include "kernels/attention/attention_plan.h"

#include <algorithm>

#include "kernels/attention/attention.h"

namespace margay {
namespace {

constexpr int kFewestQueries = 32;   // of a tile that is cut smaller to feed the threads
constexpr int kMergedTogether = 16;  // queries
constexpr int64_t kShares = 4;       // pieces of work per thread that keep all of them busy to the end

int Tiles(int queries, int most) { return (queries + most - 1) / most; }

// Tokens of a part that a group sees.
int PartTokens(const AttentionGroup& group, int part) { return std::min(group.end, PartFirst(part + 1)) - PartFirst(part); }

int64_t Cost(const AttentionGroup& group) {
  return int64_t{group.count} * (group.end - PartFirst(group.first_part));
}

}  // namespace

int PartOf(int token) {
  int part = 0;
  while (PartFirst(part + 1) <= token) ++part;
  return part;
}

AttentionPlan::AttentionPlan(int heads, int threads, int max_rows, int slots) : heads_(heads), threads_(threads), slots_(slots) {
  const size_t rows = static_cast<size_t>(max_rows);
  const size_t queries = rows * static_cast<size_t>(heads);
  visible_.reserve(queries);
  order_.reserve(2 * queries);
  first_.reserve(rows);
  depth_.reserve(rows);
  taken_.reserve(rows);
  groups_.reserve(rows);
  // Shared parts are few; a step that has more of them than this grows the lists once.
  const size_t tiles = 2 * (queries / kFewestQueries + rows);
  tiles_.reserve(tiles);
  items_.reserve(tiles + static_cast<size_t>(slots));
  merges_.reserve(static_cast<size_t>(slots));
  borders_.reserve(64);
}

void AttentionPlan::Cut(std::span<const AttentionRows> sequences) {
  visible_.clear();
  order_.clear();
  first_.clear();
  tiles_.clear();
  items_.clear();
  merges_.clear();
  borders_.assign(1, {0, 0});
  depth_.assign(sequences.size(), 0);
  pairs_ = 0;
  slots_used_ = 0;
  for (const AttentionRows& sequence : sequences) {
    first_.push_back(sequence.first_row * heads_);
    visible_.resize(static_cast<size_t>(first_.back()));
    for (int row = 0; row < sequence.count; ++row) {
      visible_.insert(visible_.end(), static_cast<size_t>(heads_), sequence.position + row + 1);
    }
    while (order_.size() < visible_.size()) order_.push_back(static_cast<int32_t>(order_.size()));
    pairs_ += int64_t{sequence.count} * heads_ * sequence.end();
  }
  while (GroupSharers(sequences)) EndPhase();
  GroupEach(sequences);
  EndPhase();
}

AttentionPlan::Phase AttentionPlan::phase(size_t i) const {
  const Border& from = borders_[i];
  const Border& to = borders_[i + 1];
  return {std::span(items_).subspan(from.items, to.items - from.items), std::span(merges_).subspan(from.merges, to.merges - from.merges)};
}

// Whole parts, all written before this step, that lie in the same blocks; both agree up to part `from`.
int AttentionPlan::SharedParts(const AttentionRows& a, const AttentionRows& b, int from) const {
  const int written = std::min(a.position, b.position);
  int part = from;
  for (int block = PartFirst(from) / kTileTokens; PartFirst(part + 1) <= written; ++block) {
    if (a.block_table[block] != b.block_table[block]) break;
    if ((block + 1) * kTileTokens == PartFirst(part + 1)) ++part;
  }
  return part;
}

// One group for each set of sequences that have a next part in common; false if there is none.
bool AttentionPlan::GroupSharers(std::span<const AttentionRows> sequences) {
  groups_.clear();
  taken_.assign(sequences.size(), 0);
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (taken_[i] != 0) continue;
    const int from = depth_[i];
    int shared = 0;
    const auto order = order_.size();
    for (size_t j = i + 1; j < sequences.size(); ++j) {
      if (taken_[j] != 0 || depth_[j] != from) continue;
      const int both = SharedParts(sequences[i], sequences[j], from);
      if (both == from) continue;
      if (shared == 0) taken_[i] = 2;
      taken_[j] = 2;
      shared = shared == 0 ? both : std::min(shared, both);
    }
    if (shared == 0) continue;
    for (size_t j = i; j < sequences.size(); ++j) {
      if (taken_[j] != 2) continue;
      taken_[j] = 1;
      depth_[j] = shared;
      for (int query = 0; query < sequences[j].count * heads_; ++query) order_.push_back(first_[j] + query);
    }
    groups_.push_back({static_cast<int>(order), static_cast<int>(order_.size() - order), sequences[i].block_table, from, shared,
                       PartFirst(shared), false, -1});
  }
  return !groups_.empty();
}

void AttentionPlan::GroupEach(std::span<const AttentionRows> sequences) {
  groups_.clear();
  for (size_t i = 0; i < sequences.size(); ++i) {
    const AttentionRows& sequence = sequences[i];
    groups_.push_back({first_[i], sequence.count * heads_, sequence.block_table, depth_[i], PartOf(sequence.end() - 1) + 1,
                       sequence.end(), true, -1});
  }
}

// The largest tiles that give every thread something to do.
int AttentionPlan::MostQueries() const {
  for (int most = kAttentionQueries; most > kFewestQueries; most /= 2) {
    int64_t items = 0;
    for (const AttentionGroup& group : groups_) items += int64_t{Tiles(group.count, most)} * group.parts();
    if (items >= 2 * threads_) return most;
  }
  return kFewestQueries;
}

void AttentionPlan::EndPhase() {
  const int most = MostQueries();
  int64_t all = 0;
  for (const AttentionGroup& group : groups_) all += Cost(group);
  for (const AttentionGroup& group : groups_) {
    const int tiles = Tiles(group.count, most);
    for (int i = 0; i < tiles; ++i) {
      AttentionGroup tile = group;
      const int first = static_cast<int>(int64_t{group.count} * i / tiles);
      tile.order += first;
      tile.count = static_cast<int>(int64_t{group.count} * (i + 1) / tiles) - first;
      tile.end = std::min(group.end, visible_[static_cast<size_t>(order_[static_cast<size_t>(tile.order + tile.count - 1)])]);
      tile.last_part = PartOf(tile.end - 1) + 1;
      AddTile(tile, all / (kShares * threads_));
    }
  }
  const Border& begin = borders_.back();
  std::sort(items_.begin() + static_cast<ptrdiff_t>(begin.items), items_.end(), [](const Item& a, const Item& b) { return a.cost > b.cost; });
  borders_.push_back({items_.size(), merges_.size()});
}

// A tile that costs more than is affordable for one thread is computed part by part, while there are slots.
void AttentionPlan::AddTile(const AttentionGroup& planned, int64_t affordable) {
  AttentionGroup tile = planned;
  const int index = static_cast<int>(tiles_.size());
  const int slots = tile.count * tile.parts();
  const bool apart = threads_ > 1 && tile.parts() > 1 && Cost(tile) > affordable && slots <= slots_ - slots_used_;
  if (!apart) {
    items_.push_back({index, tile.first_part, tile.last_part, Cost(tile)});
  } else {
    tile.slot = slots_used_;
    slots_used_ += slots;
    for (int part = tile.first_part; part < tile.last_part; ++part) {
      items_.push_back({index, part, part + 1, int64_t{tile.count} * PartTokens(tile, part)});
    }
    for (int first = 0; first < tile.count; first += kMergedTogether) {
      merges_.push_back({index, first, std::min(kMergedTogether, tile.count - first)});
    }
  }
  tiles_.push_back(tile);
}

}  // namespace margay
