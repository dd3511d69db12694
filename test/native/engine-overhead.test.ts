import { testNativeClaims } from "../support/native-claims.ts";

testNativeClaims(
  "engine_overhead",
  [],
  [
    "the engine itself takes less than it promised of a step of 16",
    "short steps of an unchanged batch are told several at once, also the last ones before it rests",
  ],
);
