import { planFleet, type Traffic, tableSeven } from "../planner/fleet-plan.ts";
import { GPUS, MODELS } from "../planner/moe-shape.ts";
import { MEASURED_EFFICIENCY } from "../planner/step-time.ts";
import { readTrace } from "../simulate/trace-file.ts";
import { named } from "./simulate-trace.ts";

export interface PlanArguments {
  readonly model: string;
  readonly gpu: string;
  readonly gpus: number;
  readonly trace: string | null;
  readonly ttftGoalMs: number;
  readonly tpotGoalMs: number;
}

/** Without a trace: prompts and answers of the length of Table 7's context. */
const USUAL: Traffic = { requestsPerSecond: 1, promptTokens: 4_500, cachedTokens: 0, outputTokens: 1_000 };

/** Says how to divide GPUs between prefill and decoding, and how many share the experts. */
export function plan(asked: PlanArguments): number {
  const gpu = named(GPUS, asked.gpu, "GPU");
  const model = named(MODELS, asked.model, "model");
  const theory = MODELS.map((one) => {
    const { tpotMs, dollars } = tableSeven(one, GPUS[0]!);
    return `  ${one.name.padEnd(14)} ${tpotMs.toFixed(1).padStart(5)} ms   ${dollars.toFixed(3)} dollars per million output tokens`;
  });
  const { decode, prefill } = MEASURED_EFFICIENCY;
  const traffic = asked.trace === null ? USUAL : trafficOf(asked.trace);
  const plans = planFleet({
    ...{ model, gpu, traffic, efficiency: MEASURED_EFFICIENCY },
    ...{ gpus: asked.gpus, ttftGoalMs: asked.ttftGoalMs, tpotGoalMs: asked.tpotGoalMs },
  });
  const rows = plans.map(
    (one) =>
      `  EP${String(one.width).padEnd(4)} P ${String(one.prefillGpus).padStart(4)}  D ${String(one.decodeGpus).padStart(4)} GPUs  ` +
      `${String(one.requestsPerGpu).padStart(3)} streams a GPU  TPOT ${one.tpotMs.toFixed(1)} ms  prefill ${one.prefillMs.toFixed(0)} ms  ` +
      `${one.requestsPerSecond.toFixed(2)} requests/s  ${one.dollarsPerMillionOutput.toFixed(2)} dollars per million output tokens`,
  );
  const lines = [
    "theory at EP128, 96 requests per GPU, context 5000 (Table 7 of the LongCat-Flash report):",
    ...theory,
    "",
    `${asked.gpus} ${gpu.name} for ${model.name}: ${traffic.promptTokens.toFixed(0)} prompt tokens (${traffic.cachedTokens.toFixed(0)} cached), ` +
      `${traffic.outputTokens.toFixed(0)} output; TTFT ${asked.ttftGoalMs} ms, TPOT ${asked.tpotGoalMs} ms`,
    `assumed beyond the table: decoding reaches ${decode} of its theory (16 ms, measured 26), prefill ${prefill} of the fp8 peak; ` +
      "prefill groups 80 % and decode groups 85 % full",
    ...(plans.length === 0
      ? ["  no way keeps the goals: more GPUs, or a longer time per token"]
      : [...rows, `best: EP${plans[0]!.width}, P:D ${plans[0]!.prefillGpus}:${plans[0]!.decodeGpus}`]),
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
  return plans.length === 0 ? 1 : 0;
}

function trafficOf(file: string): Traffic {
  const trace = readTrace(file);
  const mean = (of: (one: (typeof trace)[number]) => number): number =>
    trace.reduce((sum, one) => sum + of(one), 0) / trace.length;
  return {
    requestsPerSecond: trace.length / Math.max(1, (trace.at(-1)?.atMs ?? 0) / 1000),
    promptTokens: mean((one) => one.promptTokens),
    cachedTokens: mean((one) => one.cachedTokens),
    outputTokens: mean((one) => one.outputTokens),
  };
}
