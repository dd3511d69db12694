import { testNativeClaims } from "../support/native-claims.ts";

testNativeClaims(
  "checksum",
  [],
  [
    "every code path has the same sum",
    "a copy holds every byte, and its sum is that of the source",
    "every bit counts, and no two cancel out",
    "torn copies and stuck lines are seen",
  ],
);
