import { testNativeClaims } from "../support/native-claims.ts";

testNativeClaims("engine_overhead", [], ["the engine itself takes less than it promised of a step of 16"]);
