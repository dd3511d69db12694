import { describe } from "vitest";
import { testNativeClaims } from "../support/native-claims.ts";

describe("expert exchange between threads", () => {
  testNativeClaims(
    "expert_exchange",
    [],
    [
      "results agree with a plain calculation for 1 to 5 members, all formats and row counts",
      "uneven experts, all at one member, zero-computation experts alone and no rows at all",
      "bytes are rows times ranks touched and not one more",
      "results per expert have the same bits for every group size, map and replica",
      "replicas take turns",
      "a map is used from the same step on by all",
      "a member that rests is called when a step begins",
      "an abort and a farewell end all waits and name who is guilty",
      "bad groups, maps and calls are refused",
    ],
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

describe("expert exchange with a member that falls", () => {
  testNativeClaims(
    "expert_losses",
    [],
    [
      "the others leave a killed member in time, shared memory",
      "the others leave a killed member in time, TCP",
      "the others leave a stopped member in time, shared memory",
      "the others leave a stopped member in time, TCP",
      "the others leave a slow member in time, shared memory",
      "the others leave a slow member in time, TCP",
      "the others leave a member that is cut off in time, TCP",
      "the next group forms without a stopped member and refuses it afterwards, shared memory",
      "the next group forms without a stopped member and refuses it afterwards, TCP",
    ],
  );
});
