import { describe } from "vitest";
import { testNativeClaims } from "../support/native-claims.ts";

describe("expert exchange between threads", () => {
  testNativeClaims(
    "expert_exchange",
    [],
    ["results agree with a plain calculation for 1 to 5 members, all formats and row counts"],
  );
});
