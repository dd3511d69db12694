import { join } from "node:path";
import { loadServedModel } from "../chat/served-model.ts";
import { describeChaos, runChaos } from "../simulate/chaos-report.ts";
import { SIM_MODEL } from "../simulate/sim-world.ts";
import { installFolder } from "./config.ts";

export interface ChaosArguments {
  readonly firstSeed: number;
  readonly seeds: number;
  /** In all. */
  readonly requests: number;
}

/** Breaks a simulated system in every way it knows; 1 when an invariant broke. The tokenizer is that of the bundled model. */
export async function simulateChaos({ firstSeed, seeds, requests }: ChaosArguments): Promise<number> {
  const model = await loadServedModel(SIM_MODEL, join(installFolder, "models/nano"));
  const each = Math.max(1, Math.ceil(requests / seeds));
  const onSeed = (seed: number): void => {
    if (process.stderr.isTTY) process.stderr.write(`\rseed ${seed} `);
  };
  const report = await runChaos({ firstSeed, seeds, requests: each, onSeed }, { model });
  if (process.stderr.isTTY) process.stderr.write("\r");
  process.stdout.write(describeChaos(report));
  return report.failure === null ? 0 : 1;
}
