import { describe, expect, test } from "vitest";
import type { MargayError } from "#protocol/errors.ts";
import { RequestId } from "#protocol/ids.ts";
import type { UsageRow } from "#protocol/tenancy.ts";
import type { FlowRequest, RequestUse } from "../../control-plane/flow/request-flow.ts";
import { dayOf } from "../../control-plane/tenancy/calendar.ts";
import type { Caller } from "../../control-plane/tenancy/caller.ts";
import type { KeyedTenancy } from "../../control-plane/tenancy/tenancy.ts";
import { fakeRandom } from "../support/fake-clock.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { KeysFile, keyFor, tenancyOf } from "../support/keys-file.ts";
import { SIM_MODEL_NAME, type SimRank, SimSystem } from "../support/sim-system.ts";

/** What engines say they did. */
interface Done {
  prefillTokens: number;
  decodeTokens: number;
  prefillMs: number;
  decodeMs: number;
}

interface Request {
  readonly tenant: string;
  readonly input: number;
  output: number;
  recorded: boolean;
}

/** A system whose requests are tickets of two tenants. */
class Metered {
  readonly requests: Request[] = [];
  readonly gone: Done = { prefillTokens: 0, decodeTokens: 0, prefillMs: 0, decodeMs: 0 };
  readonly system: SimSystem;
  readonly tenancy: KeyedTenancy;
  readonly #keys: readonly string[];
  readonly #random = fakeRandom(11);

  private constructor(system: SimSystem, tenancy: KeyedTenancy, keys: readonly string[]) {
    this.system = system;
    this.tenancy = tenancy;
    this.#keys = keys;
  }

  static async start(seed: number): Promise<Metered> {
    const keys = [keyFor("acme"), keyFor("other")];
    const prices = {
      currency: "USD",
      models: { [SIM_MODEL_NAME]: { input: "0.7", cachedInput: "0.07", output: "2.8" } },
    };
    await using file = await KeysFile.with({
      tenants: { acme: { limits: { concurrency: 1_000 } }, other: {} },
      keys: keys.map(({ line }) => line),
      prices,
    });
    const system = new SimSystem({ seed });
    const bus = system.network.connect("control-plane");
    const tenancy = await tenancyOf(file, { bus, clock: system.clock });
    return new Metered(
      system,
      tenancy,
      keys.map(({ key }) => key),
    );
  }

  /** A random request; `mixed`: it may be stopped early, or be left by its client. */
  send(mixed: boolean): void {
    const { clock } = this.system;
    const between = (most: number) => 1 + Math.floor(this.#random.uniform() * most);
    const index = this.requests.length;
    const caller = this.tenancy.identify(this.#keys[index % 2]!);
    const prompt = promptOf(between(300), between(40));
    const generation = generationOf(prompt, { maxNewTokens: between(60) });
    const request: Request = {
      ...{ tenant: caller.tenant.name, input: prompt.length, output: 0, recorded: false },
    };
    this.requests.push(request);
    const abort = new AbortController();
    const way = mixed ? this.#random.uniform() : 1;
    if (way < 0.1) clock.after(between(200), () => abort.abort());
    const leaves = way > 0.1 && way < 0.2 ? between(30) : Number.POSITIVE_INFINITY;
    const enough = way > 0.2 && way < 0.3 ? between(30) : Number.POSITIVE_INFINITY;
    const requestId = RequestId.parse(`r${index}`);
    const share = { tenant: request.tenant, weight: 1, urgency: 0 };
    const asked = { requestId, model: SIM_MODEL_NAME, share, generation, maxWaitMs: null, signal: abort.signal };
    void this.#serve({ ...asked, deadlineMs: clock.now() + 600_000 }, caller, request, (output) => {
      if (output >= leaves) abort.abort();
      return output >= enough ? "enough" : "more";
    });
  }

  async #serve(
    asked: FlowRequest,
    caller: Caller,
    request: Request,
    reader: (output: number) => "more" | "enough",
  ): Promise<void> {
    const work = { requestId: asked.requestId, model: SIM_MODEL_NAME, inputTokens: request.input };
    const ticket = await this.tenancy.begin(caller, work, () => {});
    const used = Promise.withResolvers<RequestUse>();
    const onTokens = (tokens: Int32Array) => {
      request.output += tokens.length;
      ticket.charge(tokens.length);
      return reader(request.output);
    };
    const served = this.system.flow.serve(asked, { onProgress() {}, onTokens, onUse: used.resolve });
    const outcome = await served.then(
      () => "ok" as const,
      (error: MargayError) => error.code,
    );
    ticket.end();
    ticket.record({ outcome, ...(await used.promise), reasoningTokens: 0 });
    request.recorded = true;
  }

  kill(rank: SimRank): void {
    this.#count(rank, this.gone);
    this.system.kill(rank);
  }

  /** The engines' own counts, those that were killed included. */
  get engines(): Done {
    const sum = { ...this.gone };
    for (const rank of this.system.ranks) this.#count(rank, sum);
    return sum;
  }

  async finished(): Promise<readonly UsageRow[]> {
    await this.system.until(() => this.requests.every(({ recorded }) => recorded), 300_000);
    await this.system.clock.advance(1_000);
    const [usage] = (await this.tenancy.usage([dayOf(this.system.clock.now())])).days;
    return usage!.rows;
  }

  #count({ role, engine }: SimRank, sum: Done): void {
    const stats = engine.stats();
    sum.prefillTokens += stats.prefillTokens;
    sum.decodeTokens += stats.decodeTokens;
    if (role === "prefill") sum.prefillMs += stats.computeMs;
    else sum.decodeMs += stats.computeMs;
  }
}

const total = (rows: readonly UsageRow[], of: (row: UsageRow) => number) => rows.reduce((sum, row) => sum + of(row), 0);

describe("the ledger against the engines", () => {
  test("300 requests in peace: every token and every millisecond that engines count is somebody's", async () => {
    const metered = await Metered.start(1);
    const { system } = metered;
    await Promise.all([system.prefill("p1"), system.prefill("p2"), system.decode("d1"), system.decode("d2")]);
    for (let i = 0; i < 300; i++) {
      metered.send(false);
      if (i % 5 === 0) await system.clock.advance(20);
    }
    const rows = await metered.finished();
    const engines = metered.engines;
    expect(total(rows, (row) => row.requests)).toBe(300);
    expect(total(rows, (row) => row.inputTokens - row.cachedTokens)).toBe(engines.prefillTokens);
    // The first token of each is a prefill rank's.
    expect(total(rows, (row) => row.outputTokens) - 300).toBe(engines.decodeTokens);
    // Each entry is rounded to a microsecond.
    expect(Math.abs(total(rows, (row) => row.prefillGpuMicros) - engines.prefillMs * 1000)).toBeLessThan(300);
    expect(Math.abs(total(rows, (row) => row.decodeGpuMicros) - engines.decodeMs * 1000)).toBeLessThan(300);
    for (const row of rows) {
      const picos =
        (row.inputTokens - row.cachedTokens) * 700_000 + row.cachedTokens * 70_000 + row.outputTokens * 2_800_000;
      expect(row.costPicos).toBe(String(picos));
    }
  });

  test("700 requests with killed ranks, clients that leave and texts that end early: what clients got is written down, once", async () => {
    const metered = await Metered.start(2);
    const { system } = metered;
    await Promise.all([system.prefill("p1"), system.prefill("p2"), system.decode("d1"), system.decode("d2")]);
    const random = fakeRandom(5);
    for (let i = 0; i < 700; i++) {
      metered.send(true);
      if (i % 5 === 0) await system.clock.advance(25);
      if (i % 60 === 30) {
        const rank = system.ranks[Math.floor(random.uniform() * system.ranks.length)]!;
        metered.kill(rank);
        await (rank.role === "prefill" ? system.prefill(`p${i}`) : system.decode(`d${i}`));
      }
    }
    const rows = await metered.finished();
    const engines = metered.engines;
    for (const row of rows) {
      const own = metered.requests.filter(({ tenant }) => tenant === row.tenant);
      expect(row.outputTokens).toBe(own.reduce((sum, { output }) => sum + output, 0));
      // Who left before anything was computed for it has no entry.
      const served = own.filter(({ output }) => output > 0).length;
      expect(row.requests).toBeGreaterThanOrEqual(served);
      expect(row.requests).toBeLessThanOrEqual(own.length);
    }
    expect(total(rows, (row) => row.failedRequests)).toBeGreaterThan(20);
    // What engines computed beyond that was lost with them, or left by clients: nobody's.
    const share = (ledger: number, engine: number) => ledger / engine;
    const prefill = total(rows, (row) => row.prefillGpuMicros) / 1000;
    const decode = total(rows, (row) => row.decodeGpuMicros) / 1000;
    for (const known of [share(prefill, engines.prefillMs), share(decode, engines.decodeMs)]) {
      expect(known).toBeLessThan(1.0001);
      expect(known).toBeGreaterThan(0.9);
    }
    expect(total(rows, (row) => row.outputTokens - row.requests)).toBeLessThanOrEqual(engines.decodeTokens);
  });
});
