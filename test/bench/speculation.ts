import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { renderChat } from "../../control-plane/chat/prompt.ts";
import { type Dialogue, dialogues, nanoModel } from "../support/dialogues.ts";
import { promptOf } from "../support/generation.ts";
import { type Decoding, DraftEngine, sumOf } from "./draft-engine.ts";
import { checkFigures, printFigures } from "./figure-table.ts";
import type { Figure, FigurePromise, MachineLine, Spread } from "./native-figures.ts";
import type { BenchOptions } from "./options.ts";
import { summary } from "./report.ts";

/** Of one draft a step for a lone stream: right drafts, tokens of what they allow, and tokens of what there is without. */
const ACCEPTANCE: FigurePromise = { of: "value", atMost: false, floor: 80, goal: 85 };
const SHARE_OF_EXPECTED: FigurePromise = { of: "share", atMost: false, floor: 0.9, goal: 0.95 };
const SPEEDUP: FigurePromise = { of: "value", atMost: false, floor: 1.15, goal: 1.3 };
/** Where drafts do not pay, they may cost next to nothing. */
const UNDER_LOAD: FigurePromise = { of: "share", atMost: false, floor: 0.97, goal: 1 };

const FRESH = fileURLToPath(new URL("../fixtures/prompts-20261123.json", import.meta.url));
const TOKENS = 256;
const BATCHES = [1, 4, 16];
const TOKENS_UNDER_LOAD = 160;

async function promptsOf(list: readonly Dialogue[]): Promise<Int32Array[]> {
  const model = await nanoModel();
  return list.map(({ messages, tools, enable_thinking }) => {
    const templateKwargs = enable_thinking === null ? {} : { enable_thinking };
    return renderChat(model, messages, { tools, templateKwargs }).tokens;
  });
}

const speedOf = ({ tokens, decodeMs }: Decoding) => (1000 * tokens) / decodeMs;
const stepMsOf = ({ computeMs, steps }: Decoding) => computeMs / steps;
const acceptanceOf = ({ accepted, verified }: Decoding) => (verified === 0 ? 0 : accepted / verified);

function spreadOf(samples: readonly number[]): Spread {
  const { p50, least, most } = summary(samples);
  return [p50, least, most];
}

interface Row {
  readonly table: string;
  readonly name: string;
  readonly unit: string;
  readonly values: readonly number[];
  /** Of the same rounds, in the same unit. */
  readonly limits?: { readonly by: string; readonly values: readonly number[] };
  readonly promise?: FigurePromise | undefined;
}

/** Prompts to engines with 0, 1 and 2 drafts a step, by turns: one stream at a time, and several at once. */
export async function benchSpeculation(options: BenchOptions): Promise<void> {
  const packedFolder = mkdtempSync(join(tmpdir(), "margay-bench-"));
  const settings = { backend: options.backend, threads: 0, packedFolder };
  const engines = await Promise.all([0, 1, 2].map((speculation) => DraftEngine.open({ ...settings, speculation })));
  const { isa, threads } = engines[0]!.engine.info;
  const figures: Figure[] = [];
  const add = ({ table, name, unit, values, limits, promise }: Row): void => {
    const [limit] = limits === undefined ? [null] : spreadOf(limits.values);
    const shares = limits?.values.map((of, round) => values[round]! / of);
    figures.push({
      ...{
        kind: "figure",
        table,
        name,
        path: isa,
        threads,
        unit,
        value: spreadOf(values),
        disturbed: false,
        rivals: {},
      },
      ...{ limit, limitedBy: limits?.by ?? "", share: shares === undefined ? [null, null, null] : spreadOf(shares) },
      ...(promise === undefined ? {} : { promise }),
    });
  };
  const recorded = JSON.parse(readFileSync(FRESH, "utf8")) as Dialogue[];
  const fresh = await promptsOf(options.quick ? recorded.slice(0, 16) : recorded);
  await loneStream(engines, fresh, options, add);
  await underLoad(engines.slice(0, 2), fresh, options, add);
  const machine: MachineLine = {
    ...{ kind: "machine", processor: cpus()[0]?.model ?? "unknown processor", features: isa },
    ...{ cores: cpus().length, load: loadavg()[0] ?? null },
  };
  options.results.add("speculation", [machine, ...figures]);
  printFigures(machine, [], figures);
  checkFigures(figures, options.promises);
  await Promise.all(engines.map(({ engine }) => engine.close()));
  rmSync(packedFolder, { recursive: true });
}

/** What drafts save a stream that is alone: each prompt to each engine by turns. */
async function loneStream(
  engines: readonly DraftEngine[],
  fresh: readonly Int32Array[],
  { quick }: BenchOptions,
  add: (row: Row) => void,
): Promise<void> {
  const sets = [
    { name: "recorded dialogues, greedy", prompts: await promptsOf(dialogues), temperature: 0 },
    { name: `${fresh.length} fresh prompts, greedy`, prompts: fresh, temperature: 0 },
    { name: `${fresh.length} fresh prompts, temperature 1`, prompts: fresh, temperature: 1 },
  ];
  const table = "drafts for a lone stream";
  for (const { name, prompts, temperature } of sets) {
    const rounds = await byTurns(engines, quick ? 2 : 7, async (engine) => {
      const list: Decoding[] = [];
      for (const prompt of prompts) {
        list.push(await engine.decode({ prompts: [prompt], tokens: TOKENS, temperature, toTheEnd: false }));
      }
      return sumOf(list);
    });
    const plain = rounds[0]!;
    add({ table, name: `${name}, no drafts`, unit: "tok/s", values: plain.map(speedOf) });
    for (const [i, own] of rounds.slice(1).entries()) {
      const drafts = `${name}, ${i + 1} ${i === 0 ? "draft" : "drafts"}`;
      const promised = i === 0 && temperature === 0;
      const cost = own.map((one, round) => stepMsOf(one) / stepMsOf(plain[round]!));
      const expected = own.map((one, round) => (speedOf(plain[round]!) * (1 + acceptanceOf(one))) / cost[round]!);
      add({
        ...{ table, name: drafts, unit: "tok/s", values: own.map(speedOf) },
        ...(i === 0 ? { limits: { by: "(1 + accepted) / step cost", values: expected } } : {}),
        promise: promised ? SHARE_OF_EXPECTED : undefined,
      });
      const times = own.map((one, round) => speedOf(one) / speedOf(plain[round]!));
      add({
        table,
        name: `${drafts}: against none`,
        unit: "x",
        values: times,
        promise: promised ? SPEEDUP : undefined,
      });
      add({ table, name: `${drafts}: cost of a step`, unit: "x", values: cost });
      const accepted = own.map((one) => 100 * acceptanceOf(one));
      add({
        table,
        name: `${drafts}: accepted`,
        unit: "%",
        values: accepted,
        promise: promised ? ACCEPTANCE : undefined,
      });
    }
  }
}

/** What a draft brings, or costs, where several streams share a step: who drafts is the engine's choice. */
async function underLoad(
  engines: readonly DraftEngine[],
  fresh: readonly Int32Array[],
  { quick }: BenchOptions,
  add: (row: Row) => void,
): Promise<void> {
  const table = "one draft under load";
  // After tokens in no order the draft layer is sure of nothing.
  const senseless = Array.from({ length: 64 }, (_, salt) => promptOf(60 + salt, salt));
  const texts = [
    { how: "greedy", prompts: fresh, temperature: 0 },
    { how: "temperature 1", prompts: fresh, temperature: 1 },
    { how: "senseless prompts", prompts: senseless, temperature: 1 },
  ];
  for (const streams of BATCHES) {
    for (const { how, prompts, temperature } of texts) {
      const groups = Math.max(1, Math.floor((quick ? 8 : 48) / streams));
      const rounds = await byTurns(engines, quick ? 2 : 7, async (engine) => {
        const list: Decoding[] = [];
        for (let group = 0; group < groups; group++) {
          const own = Array.from({ length: streams }, (_, i) => prompts[(group * streams + i) % prompts.length]!);
          list.push(await engine.decode({ prompts: own, tokens: TOKENS_UNDER_LOAD, temperature, toTheEnd: true }));
        }
        return sumOf(list);
      });
      const [plain, own] = [rounds[0]!, rounds[1]!];
      const name = `${streams} ${streams === 1 ? "stream" : "streams"}, ${how}`;
      const limits = { by: "no drafts", values: plain.map(speedOf) };
      const promise = streams === Math.max(...BATCHES) ? UNDER_LOAD : undefined;
      add({ table, name, unit: "tok/s", values: own.map(speedOf), limits, promise });
      const drafted = own.map(({ verified, tokens, accepted }) => (100 * verified) / (tokens - accepted));
      add({ table, name: `${name}: tokens with a draft`, unit: "%", values: drafted });
    }
  }
}

/** The same work by each engine, round after round: what each did, per engine and round. The first round warms up. */
async function byTurns(
  engines: readonly DraftEngine[],
  rounds: number,
  work: (engine: DraftEngine) => Promise<Decoding>,
): Promise<readonly (readonly Decoding[])[]> {
  const done: Decoding[][] = engines.map(() => []);
  for (let round = 0; round <= rounds; round++) {
    for (const [i, engine] of engines.entries()) {
      const made = await work(engine);
      if (round > 0) done[i]!.push(made);
    }
  }
  return done;
}
