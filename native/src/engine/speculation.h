// The rules of speculation (spec 7): how many drafts a sequence may have, and which of them are worth a row.
//
// V1 the target draws every token, from its own logits, with the number that belongs to the token's position. A draft
//    is accepted when it is that token: it saves a step and decides nothing, so the text is the same, token for token,
//    with any number of drafts
// V2 a draft is drawn with the very same number from the draft layer's logits: the two meet nearly as often as their
//    distributions overlap, which is what a draft of its own and a lottery over it would reach
// V3 drafts that the target is unlikely to meet are not verified, the fewer the more rows a step has; whether a stream
//    drafts at all is decided by engine/draft_policy.h
#pragma once

#include <algorithm>

namespace margay {

inline constexpr int kMostDrafts = 7;  // per sequence and step

// Where a sequence stands between two steps.
struct DraftRoom {
  int known = 0;        // tokens; the last one is the next step's first row
  int capacity = 0;     // rows that blocks are kept for
  int token_limit = 0;  // known tokens at which it ends
  int min_tokens = 0;   // known tokens before which it may not stop
};

// Drafts its next step can use. That step may make one token more than it has drafts: they fit the limit, their rows
// have blocks, and the tokens that may not stop are all of it or none.
inline int DraftsThatFit(const DraftRoom& room, int wanted) {
  int drafts = std::min({wanted, room.capacity - room.known, room.token_limit - room.known - 1});
  if (room.known < room.min_tokens) drafts = std::min(drafts, room.min_tokens - room.known - 1);
  return std::max(drafts, 0);
}

// Probability below which a draft is not verified, in a step of `rows`: what the row costs, as a share of a row that is
// sure to give a token. Next to nothing while weights are read for a few rows, all of it when every row computes.
inline float LeastDraftProbability(int rows) {
  // Rows at which the least probability is a half. On the cpu backend a second row for each of 1, 4, 8 and 16 streams of
  // nano costs as much as 5, 26, 45 and 50 % of a token.
  constexpr float kBalance = 24;
  return static_cast<float>(rows) / (static_cast<float>(rows) + kBalance);
}

}  // namespace margay
