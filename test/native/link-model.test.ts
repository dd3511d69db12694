import { testNativeClaims } from "../support/native-claims.ts";

testNativeClaims(
  "link_model",
  [],
  [
    "a message arrives after its bytes and the latency",
    "messages leave one behind the other",
    "latencies overlap",
    "small messages lose nothing to rounding",
    "messages never overtake each other",
  ],
);
