import { testNativeClaims } from "../support/native-claims.ts";

testNativeClaims(
  "draft_policy",
  [],
  [
    "where rows cost nothing, everyone drafts",
    "where every row computes, nobody drafts, but for a trial now and then",
    "what is chosen is never 3 % worse than the better of all and nobody, whatever drafting costs and brings",
    "a stream whose drafts are wrong does not draft, the others do",
    "the choice follows the load",
    "decisions depend on what was measured alone",
  ],
);
