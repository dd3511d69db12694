import { parseArgs } from "node:util";
import { benchCold } from "./cold.ts";
import { benchControlPlane } from "./control-plane.ts";
import { benchEngine } from "./engine.ts";
import { benchExpertParallel } from "./expert-parallel.ts";
import { benchGateway } from "./gateway.ts";
import { benchKernels, benchProgram } from "./kernels.ts";
import { benchMemory } from "./memory.ts";
import { benchNano } from "./nano.ts";
import type { BenchOptions } from "./options.ts";
import { Promises } from "./report.ts";
import { Results } from "./results.ts";
import { benchSpeculation } from "./speculation.ts";
import { benchStructured } from "./structured.ts";

/**
 * `npm run bench [-- PART ...] [--backend ref|cpu] [--quick]`. Prints one table per figure; ends with code 1 when a
 * promised limit is broken.
 */
const PARTS = {
  nano: benchNano,
  cold: benchCold,
  "control-plane": benchControlPlane,
  gateway: benchGateway,
  memory: benchMemory,
  kernels: benchKernels,
  engine: benchEngine,
  transfer: (options: BenchOptions) => benchProgram("transfer", "transfer", options),
  ep: benchExpertParallel,
  speculation: benchSpeculation,
  structured: benchStructured,
} as const;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { backend: { type: "string", default: "cpu" }, quick: { type: "boolean", default: false } },
});
const unknown = positionals.filter((part) => !(part in PARTS));
if (unknown.length > 0 || (values.backend !== "ref" && values.backend !== "cpu")) {
  process.stderr.write(`usage: npm run bench [-- ${Object.keys(PARTS).join(" | ")}] [--backend ref|cpu] [--quick]\n`);
  process.exit(2);
}
const promises = new Promises();
const backend = values.backend === "ref" ? "ref" : "cpu";
const parts = (positionals.length > 0 ? positionals : Object.keys(PARTS)) as (keyof typeof PARTS)[];
const results = new Results();
for (const part of parts) await PARTS[part]({ backend, quick: values.quick, promises, results });
for (const file of results.write()) process.stdout.write(`written: ${file}\n`);
process.exit(promises.broken.length === 0 ? 0 : 1);
