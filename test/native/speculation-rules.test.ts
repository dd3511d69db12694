import { testNativeClaims } from "../support/native-claims.ts";

testNativeClaims(
  "speculation",
  [],
  [
    "texts drawn with drafts have the target's distribution, at temperature 1",
    "texts drawn with drafts have the target's distribution, at temperature 0.6",
    "a seed gives the same text with any number of drafts",
    "drafts fit what is left of limit, blocks and the least length; load thins them",
  ],
);
