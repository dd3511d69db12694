import { testNativeClaims } from "../support/native-claims.ts";

testNativeClaims(
  "step_bytes",
  [],
  [
    "bf16: a step reads what the model holds, part by part",
    "fp8: a step reads what the model holds, part by part",
    "int8: a step reads what the model holds, part by part",
    "its context is the rows that the pool holds",
  ],
);
