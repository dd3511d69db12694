import { BLOCK_TOKENS, type SequenceHandle } from "#protocol/kv.ts";
import { type EngineEvent, FRAME_REFUSALS, type FrameRefusal } from "./native.ts";
import type { SimAnswer, SimPage, SimPort } from "./sim-fabric.ts";
import type { SimModel } from "./sim-model.ts";
import type { SimPool } from "./sim-pool.ts";
import { givenBlocks, type SimSequence } from "./sim-sequence.ts";

/** The receiving side of a simulated engine: verifies what arrives, seals it, counts what it refuses. */
export class SimReceiver implements SimPort {
  epoch = 0;
  pages = 0;
  duplicatePages = 0;
  readonly refused = Object.fromEntries(FRAME_REFUSALS.map((cause) => [cause, 0])) as Record<FrameRefusal, number>;
  readonly #model: SimModel;
  readonly #pool: SimPool;
  readonly #find: (handle: SequenceHandle) => SimSequence | null;
  readonly #emit: (event: EngineEvent) => void;

  constructor(
    model: SimModel,
    pool: SimPool,
    find: (handle: SequenceHandle) => SimSequence | null,
    emit: (event: EngineEvent) => void,
  ) {
    this.#model = model;
    this.#pool = pool;
    this.#find = find;
    this.#emit = emit;
  }

  accept(page: SimPage): SimAnswer {
    const sequence = this.#find(page.handle);
    const answer = this.#judge(page, sequence);
    if (answer === "duplicate") this.duplicatePages += this.#model.attentions;
    else if (answer !== "ok") this.refuse(answer);
    else if (sequence !== null) this.#seal(sequence, page);
    return answer;
  }

  refuse(cause: FrameRefusal): void {
    this.refused[cause]++;
  }

  /** True when every page the sequence waits for is there. */
  complete(sequence: SimSequence): boolean {
    return sequence.arrived?.size === givenBlocks(sequence) - sequence.lease.shared;
  }

  #judge(page: SimPage, sequence: SimSequence | null): SimAnswer {
    if (page.modelHash !== this.#model.modelHash) return "incompatible";
    if (page.epoch !== this.epoch) return "stale_epoch";
    if (sequence === null || sequence.arrived === null) return "stale_handle";
    if (page.index < sequence.lease.shared || page.index >= givenBlocks(sequence)) return "unknown_page";
    // As native: a page names its place, never its text. That it is the right text is what handles and epochs are for.
    const rows = Math.min(sequence.spec.generation.tokens.length - page.index * BLOCK_TOKENS, BLOCK_TOKENS);
    if (page.rows.length !== rows) return "truncated";
    return sequence.arrived.has(page.index) ? "duplicate" : "ok";
  }

  #seal(sequence: SimSequence, { index, rows }: SimPage): void {
    const { arrived, handle } = sequence;
    if (arrived === null) return;
    if (arrived.size === 0) sequence.arrivalMs = this.#model.clock.monotonic();
    arrived.add(index);
    const id = sequence.lease.blocks[index]!;
    this.#pool.set(id, "receiving");
    for (const [row, digest] of rows.entries()) this.#pool.write(id, row, digest);
    this.#pool.set(id, "sealed");
    this.pages += this.#model.attentions;
    if (!this.complete(sequence)) return;
    const pages = arrived.size * this.#model.attentions;
    const ms = this.#model.clock.monotonic() - sequence.arrivalMs;
    this.#emit({ kind: "received", handle, pages, bytes: pages * this.#model.pageBytes, ms });
  }
}
