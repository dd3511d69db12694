import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "vitest";
import type { SequenceHandle } from "#protocol/kv.ts";
import { systemClock } from "#service/clock.ts";
import {
  type Engine,
  type EngineEvent,
  type EngineOptions,
  type ExportTarget,
  openEngine,
  packPlan,
  type StepResult,
  stepEntries,
} from "../../native/binding/native.ts";
import { NANO } from "./dialogues.ts";

/** No wait for a native engine takes longer, also on a crowded machine. No block is held longer: transfers have 10 s. */
const LIMIT_MS = 120_000;
const HELD_LIMIT_MS = 12_000;
export const EPOCH = 7;

/** A real engine over nano, and everything it told. */
export class NativeRank {
  readonly engine: Engine;
  readonly steps: StepResult[] = [];
  readonly events: EngineEvent[] = [];
  readonly fatal: string[] = [];
  /** Called after every step, before those who wait. */
  onStep: (result: StepResult) => void = () => {};
  /** The same for events. */
  onEvents: (events: readonly EngineEvent[]) => void = () => {};
  #wake: (() => void)[] = [];

  private constructor(engine: Engine) {
    this.engine = engine;
  }

  static async open(role: "prefill" | "decode", changes: Partial<EngineOptions> = {}): Promise<NativeRank> {
    let rank: NativeRank | null = null;
    const woken = (tell: (rank: NativeRank) => void) => {
      tell(rank!);
      for (const wake of rank!.#wake.splice(0)) wake();
    };
    const engine = await openEngine(
      {
        modelFolder: NANO,
        backend: "ref",
        threads: 1,
        packedFolder: packedFolder(),
        latentNormEps: 1e-6,
        weightFormat: "checkpoint",
        deterministic: false,
        speculation: 0,
        draftAlways: true,
        slots: 20,
        kvBlocks: 96,
        kvBytes: 0,
        kvTierBytes: 0,
        kvTierFolder: null,
        maxStepTokens: 256,
        role,
        rankId: `${role}-r0`,
        kvHost: "127.0.0.1",
        kvPort: 0,
        kvTransport: "auto",
        kvTls: null,
        ...changes,
      },
      {
        onStep: (result) =>
          woken((to) => {
            to.steps.push(result);
            to.onStep(result);
          }),
        onEvents: (events) =>
          woken((to) => {
            to.events.push(...events);
            to.onEvents(events);
          }),
        onFatal: (message) => woken((to) => to.fatal.push(message)),
      },
    );
    rank = new NativeRank(engine);
    engine.setEpoch(EPOCH);
    return rank;
  }

  /** Resolves once `ready` gives something; looks after every step and event, and every `pollMs` where that is not 0. */
  async until<T>(what: string, ready: () => T | null | undefined | false, pollMs = 0): Promise<T> {
    const deadline = systemClock.monotonic() + LIMIT_MS;
    for (;;) {
      const value = ready();
      if (value !== null && value !== undefined && value !== false) return value;
      expect(this.fatal).toEqual([]);
      const left = deadline - systemClock.monotonic();
      if (left <= 0) throw new Error(`waited in vain for ${what}`);
      await new Promise<void>((resolve) => {
        const timer = systemClock.after(pollMs > 0 ? pollMs : left, resolve);
        this.#wake.push(() => {
          timer.cancel();
          resolve();
        });
      });
    }
  }

  event<K extends EngineEvent["kind"]>(kind: K, handle: SequenceHandle): Promise<Extract<EngineEvent, { kind: K }>> {
    return this.until(`${kind} of slot ${handle.slot}`, () =>
      this.events.find(
        (event): event is Extract<EngineEvent, { kind: K }> =>
          event.kind === kind &&
          "handle" in event &&
          event.handle.slot === handle.slot &&
          event.handle.generation === handle.generation,
      ),
    );
  }

  /** One step, awaited: the entries of its result. */
  async step(...entries: readonly (readonly [SequenceHandle, number])[]): Promise<readonly (readonly number[])[]> {
    const number = this.engine.submit(planOf(...entries));
    return entriesOf(await this.until(`plan ${number}`, () => this.steps.find((result) => result.plan === number)));
  }

  /** Nothing is held and no invariant broken; then the engine ends. */
  async end(): Promise<void> {
    await this.idle();
    expect(this.fatal).toEqual([]);
    await this.engine.close();
  }

  /** Every block is free or cached, within the time any transfer may take to end. */
  async idle(): Promise<void> {
    const deadline = systemClock.monotonic() + HELD_LIMIT_MS;
    for (;;) {
      const { blocks, sequences } = this.engine.stats();
      const held = this.engine.info.kvBlocks - blocks.free - blocks.cached;
      if (held === 0 && sequences === 0) break;
      if (systemClock.monotonic() > deadline) expect({ blocks, sequences }).toEqual("nothing held");
      await systemClock.sleep(2);
    }
    expect(this.engine.checkInvariants()).toBeNull();
  }

  targetOf(handle: SequenceHandle, changes: Partial<ExportTarget> = {}): ExportTarget {
    const { kvPort: port, hostKey } = this.engine.info;
    const deadlineMs = systemClock.now() + 10_000;
    return { host: "127.0.0.1", port, hostKey, epoch: EPOCH, handle, cachedTokens: 0, deadlineMs, ...changes };
  }
}

let folder: string | null = null;

/** One folder of packed weights for all engines of this test file. */
function packedFolder(): string {
  if (folder === null) {
    const made = mkdtempSync(join(tmpdir(), "margay-packed-"));
    process.on("exit", () => rmSync(made, { recursive: true, force: true }));
    folder = made;
  }
  return folder;
}

/** A plan of [sequence, rows] or [sequence, rows, reserve]. */
export function planOf(...entries: readonly (readonly [SequenceHandle, number, number?])[]): Int32Array {
  return packPlan(entries.map(([handle, rows, reserve]) => ({ handle, rows, reserve: reserve ?? 0 })));
}

/** Entries as [slot, generation, rows, last token or -1, finish, length]. */
export function entriesOf(result: StepResult): readonly (readonly number[])[] {
  return stepEntries(result).map(({ slot, generation, rows, tokens, finish, length }) => [
    slot,
    generation,
    rows,
    tokens.at(-1) ?? -1,
    finish,
    length,
  ]);
}
