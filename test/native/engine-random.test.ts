import { describe } from "vitest";
import { testNativeClaims } from "../support/native-claims.ts";

describe.each([
  ["shared memory", "1", "1", "0"],
  ["TCP", "2", "0", "0"],
  ["shared memory, with a draft a step", "3", "1", "1"],
  ["TCP, with three drafts a step", "4", "0", "3"],
])("two engines under random use, over %s", (_, seed, sharedMemory, drafts) => {
  testNativeClaims(
    "engine_random",
    [seed, "2000", sharedMemory, drafts],
    ["every token is right and nothing is held at the end"],
  );
});
