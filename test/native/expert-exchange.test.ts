import { describe } from "vitest";
import { testNativeClaims } from "../support/native-claims.ts";

describe("expert exchange between threads", () => {
  testNativeClaims(
    "expert_exchange",
    [],
    ["results agree with a plain calculation for 1 to 5 members, all formats and row counts"],
  );
});

describe("expert exchange between processes", () => {
  testNativeClaims(
    "expert_ranks",
    [],
    [
      "2 processes agree over shared memory",
      "4 processes agree over shared memory",
      "2 processes agree over TCP",
      "4 processes agree over TCP",
      "5 processes on two hosts agree",
    ],
  );
});
