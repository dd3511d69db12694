import { testNativeClaims } from "../support/native-claims.ts";

testNativeClaims("engine_tier", [], ["the batch goes on while blocks are copied to the second tier and back"]);
