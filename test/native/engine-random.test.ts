import { describe } from "vitest";
import { testNativeClaims } from "../support/native-claims.ts";

describe.each([
  ["shared memory", "1", "1"],
  ["TCP", "2", "0"],
])("two engines under random use, over %s", (_, seed, sharedMemory) => {
  testNativeClaims(
    "engine_random",
    [seed, "2000", sharedMemory],
    ["every token is right and nothing is held at the end"],
  );
});
