// How the absorbed attention of one step is cut for the threads. Nothing decided here changes a bit of the result:
// A1 context is divided at fixed positions (PartFirst), each part is summed up alone, and the parts of a query are merged
//    from the first to the last, whoever computed them
// A2 a query's sums over a part do not depend on the queries beside it
//
// So parts may be spread over threads, and sequences whose tables begin with the same blocks share the tiles of these
// parts, which are then read once for all of them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace margay {

// First token of a part: every 256 tokens up to 1024, from there on four parts to each doubling.
constexpr int PartFirst(int part) { return part < 4 ? part * 256 : (1024 + part % 4 * 256) << (part / 4 - 1); }
int PartOf(int token);

// The rows of one sequence in a step: `count` tokens from `position` on, at rows first_row, first_row + 1, ...
struct AttentionRows {
  int first_row = 0;
  int count = 0;
  int position = 0;
  const int32_t* block_table = nullptr;

  int end() const { return position + count; }
};

// Queries that see the same blocks, over parts [first_part, last_part) of their context.
struct AttentionGroup {
  int order;  // into AttentionPlan::order()
  int count;
  const int32_t* block_table;
  int first_part;
  int last_part;
  int end;    // tokens that the last one sees
  bool last;  // no part follows
  int slot;   // of the sums over its first part when its parts are computed apart, else -1

  int parts() const { return last_part - first_part; }
};

class AttentionPlan {
 public:
  // Parts [first_part, last_part) of a tile; one of them, where the tile has slots.
  struct Item {
    int tile;
    int first_part;
    int last_part;
    int64_t cost;
  };
  // Some queries of a tile whose parts are to be merged.
  struct Merge {
    int tile;
    int first;
    int count;
  };
  // Items that need nothing of each other, the most expensive first. A later phase goes on where earlier ones have ended.
  struct Phase {
    std::span<const Item> items;
    std::span<const Merge> merges;
  };

  // slots: queries whose sums over one part can be kept apart.
  AttentionPlan(int heads, int threads, int max_rows, int slots);

  // By ascending first_row. Block tables are used until the next Cut.
  void Cut(std::span<const AttentionRows> sequences);

  // Query row * heads + head sees this many tokens of its sequence.
  const std::vector<int32_t>& visible() const { return visible_; }
  // Queries in the order of the tiles.
  const std::vector<int32_t>& order() const { return order_; }
  const AttentionGroup& tile(int tile) const { return tiles_[static_cast<size_t>(tile)]; }
  size_t phases() const { return borders_.size() - 1; }
  Phase phase(size_t i) const;
  // Pairs of a query and a token it sees, roughly.
  int64_t pairs() const { return pairs_; }

 private:
  struct Border {
    size_t items, merges;
  };
  int SharedParts(const AttentionRows& a, const AttentionRows& b, int from) const;
  bool GroupSharers(std::span<const AttentionRows> sequences);
  void GroupEach(std::span<const AttentionRows> sequences);
  void EndPhase();
  int MostQueries() const;
  void AddTile(const AttentionGroup& tile, int64_t affordable);

  const int heads_;
  const int threads_;
  const int slots_;
  std::vector<int32_t> visible_;
  std::vector<int32_t> order_;   // all queries as they come, then those of shared tiles
  std::vector<int32_t> first_;   // per sequence: its first query
  std::vector<int32_t> depth_;   // per sequence: parts that the phases so far have dealt with
  std::vector<uint8_t> taken_;   // per sequence: has a group in this phase
  std::vector<AttentionGroup> groups_;  // of the phase being cut
  std::vector<AttentionGroup> tiles_;
  std::vector<Item> items_;
  std::vector<Merge> merges_;
  std::vector<Border> borders_;  // of the phases
  int64_t pairs_ = 0;
  int slots_used_ = 0;
};

}  // namespace margay
