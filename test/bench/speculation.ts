import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { renderChat } from "../../control-plane/chat/prompt.ts";
import {
  type Engine,
  FINISH,
  openEngine,
  packPlan,
  type StepResult,
  stepEntries,
} from "../../native/binding/native.ts";
import { type Dialogue, dialogues, nanoModel } from "../support/dialogues.ts";
import { generationOf } from "../support/generation.ts";
import { nanoEngine } from "./engine-alone.ts";
import type { BenchOptions } from "./options.ts";
import { machineLine, print, spread, summary } from "./report.ts";

/** Promised of one draft a step: right drafts, tokens of what they allow, and tokens of what there is without. */
const ACCEPTANCE = 0.8;
const SHARE_OF_EXPECTED = 0.9;
const SPEEDUP = 1.15;

const FRESH = fileURLToPath(new URL("../fixtures/prompts-20261123.json", import.meta.url));
const TOKENS = 256;

/** One answer: decode steps, their compute time, tokens they gave, and the time from the first to the last. */
interface Answer {
  readonly steps: number;
  readonly computeMs: number;
  readonly tokens: number;
  readonly decodeMs: number;
  readonly verified: number;
  readonly accepted: number;
}

/** An engine that answers one prompt at a time: the prompt and the place in the batch are planned, nothing else is. */
class LoneEngine {
  engine!: Engine;
  #onStep: (result: StepResult) => void = () => {};

  static async open(backend: "ref" | "cpu", packedFolder: string, speculation: number): Promise<LoneEngine> {
    const lone = new LoneEngine();
    lone.engine = await openEngine(nanoEngine("decode", { backend, threads: 0, packedFolder, speculation }), {
      onStep: (result) => lone.#onStep(result),
      onEvents: () => {},
      onFatal: (message) => {
        throw new Error(message);
      },
    });
    lone.engine.setEpoch(1);
    return lone;
  }

  answer(prompt: Int32Array, temperature: number): Promise<Answer> {
    const { engine } = this;
    const generation = generationOf(prompt, { maxNewTokens: TOKENS, sampling: { temperature, seed: prompt.length } });
    const reserve = prompt.length + TOKENS;
    const { handle, cachedTokens } = engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve });
    let left = prompt.length - cachedTokens;
    const submit = () => {
      const rows = Math.min(left, engine.info.maxStepTokens);
      left -= rows;
      engine.submit(packPlan([{ handle, rows, reserve: left === 0 ? reserve : 0 }]));
    };
    return new Promise((resolve) => {
      const sum = { steps: 0, computeMs: 0, tokens: 0, verified: 0, accepted: 0 };
      let firstMs = 0;
      this.#onStep = (result) => {
        const [entry] = stepEntries(result);
        if (entry === undefined || entry.finish === FINISH.skipped) return;
        const nowMs = performance.now();
        if (entry.tokens.length === 0) return submit();
        if (firstMs === 0) firstMs = nowMs;
        else {
          sum.steps++;
          sum.computeMs += result.computeMs;
          sum.tokens += entry.tokens.length;
          sum.verified += entry.rows - 1;
          sum.accepted += entry.tokens.length - 1;
        }
        if (entry.finish === FINISH.none) return;
        engine.closeSequence(handle, false);
        resolve({ ...sum, decodeMs: nowMs - firstMs });
      };
      submit();
    });
  }
}

async function promptsOf(list: readonly Dialogue[]): Promise<Int32Array[]> {
  const model = await nanoModel();
  return list.map(({ messages, tools, enable_thinking }) => {
    const templateKwargs = enable_thinking === null ? {} : { enable_thinking };
    return renderChat(model, messages, { tools, templateKwargs }).tokens;
  });
}

function total(answers: readonly Answer[], pick: (answer: Answer) => number): number {
  return answers.reduce((sum, answer) => sum + pick(answer), 0);
}

/** What drafts save a lone stream: the same prompts to engines with 0, 1 and 2 drafts a step, by turns. */
export async function benchSpeculation(options: BenchOptions): Promise<void> {
  const packedFolder = mkdtempSync(join(tmpdir(), "margay-bench-"));
  const engines = await Promise.all([0, 1, 2].map((drafts) => LoneEngine.open(options.backend, packedFolder, drafts)));
  const fresh = await promptsOf(JSON.parse(readFileSync(FRESH, "utf8")) as Dialogue[]);
  const sets = [
    { name: "recorded dialogues, greedy", prompts: await promptsOf(dialogues), temperature: 0 },
    { name: `${fresh.length} fresh prompts, greedy`, prompts: fresh, temperature: 0 },
    { name: `${fresh.length} fresh prompts, temperature 1`, prompts: fresh, temperature: 1 },
  ];
  const rounds = options.quick ? 2 : 7;
  const rows: string[][] = [];
  const promised: [string, boolean][] = [];
  for (const { name, prompts, temperature } of sets) {
    /** Per number of drafts, per round. */
    const measured: Answer[][][] = engines.map(() => []);
    for (let round = 0; round <= rounds; round++) {
      const answers: Answer[][] = engines.map(() => []);
      for (const prompt of prompts) {
        for (const [drafts, lone] of engines.entries()) answers[drafts]!.push(await lone.answer(prompt, temperature));
      }
      // The first round warms up.
      if (round > 0) for (const [drafts, list] of answers.entries()) measured[drafts]!.push(list);
    }
    for (const [drafts, own] of measured.entries()) {
      const speeds = own.map((list) => total(list, (one) => one.tokens) / total(list, (one) => one.decodeMs / 1000));
      const costs = own.map((list) => total(list, (one) => one.computeMs) / total(list, (one) => one.steps));
      const plain = measured[0]!;
      const against = (of: (list: readonly Answer[]) => number) =>
        summary(own.map((list, round) => of(list) / of(plain[round]!))).p50;
      const speedup = against((list) => total(list, (one) => one.tokens) / total(list, (one) => one.decodeMs));
      const cost = against((list) => total(list, (one) => one.computeMs) / total(list, (one) => one.steps));
      const acceptance = total(own.flat(), (one) => one.accepted) / total(own.flat(), (one) => one.verified);
      const share = speedup / ((1 + acceptance) / cost);
      const figures =
        drafts === 0
          ? ["-", spread(summary(speeds), 0), "1", spread(summary(costs), 3), "1", "-"]
          : [
              `${(100 * acceptance).toFixed(1)} %`,
              spread(summary(speeds), 0),
              speedup.toFixed(2),
              spread(summary(costs), 3),
              cost.toFixed(2),
              drafts === 1 ? `${(100 * share).toFixed(1)} %` : "-",
            ];
      rows.push([`${name}, ${drafts} drafts`, ...figures]);
      if (drafts !== 1 || temperature > 0) continue;
      promised.push([`${name}: at least ${100 * ACCEPTANCE} % of drafts are accepted`, acceptance >= ACCEPTANCE]);
      promised.push([
        `${name}: tokens/s are at least ${SHARE_OF_EXPECTED} of (1 + acceptance) / step cost`,
        share >= SHARE_OF_EXPECTED,
      ]);
      promised.push([`${name}: at least ${SPEEDUP} times the tokens/s without drafts`, speedup >= SPEEDUP]);
    }
  }
  print({
    title: "Drafts for a lone stream",
    machine: machineLine(engines[0]!.engine.info),
    workload: `each prompt to each engine by turns, up to ${TOKENS} tokens, ${rounds} rounds; median (least..most)`,
    rows: [["", "accepted", "tokens/s", "x", "ms/step", "x", "of (1 + accepted) / cost"], ...rows],
    notMeasured: "prompts (their steps run the draft layer as well), HTTP, more than one stream",
  });
  for (const [what, held] of promised) options.promises.check(what, held);
  await Promise.all(engines.map(({ engine }) => engine.close()));
  rmSync(packedFolder, { recursive: true });
}
