import { benchProgram } from "./kernels.ts";
import type { BenchOptions } from "./options.ts";
import { openLlama } from "./peer/llama.ts";
import { benchStepOverhead } from "./step-overhead.ts";

/** Whole steps: the layer slice of LongCat, by turns with llama.cpp on the same shape, and a deep narrow model. */
export async function benchEngine(options: BenchOptions): Promise<void> {
  await benchStepOverhead(options);
  const peer = openLlama();
  if (typeof peer === "string") {
    process.stdout.write(`llama.cpp is not compared: ${peer}\n`);
    await benchProgram("engine", "engine", options);
    return;
  }
  using found = peer;
  await benchProgram("engine", "engine", options, ["--peer", found.library, found.model]);
}
