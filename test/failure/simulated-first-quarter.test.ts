import { testChaosQuarter } from "../support/chaos-quarter.ts";

testChaosQuarter(0);
