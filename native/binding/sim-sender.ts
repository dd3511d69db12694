import { BLOCK_TOKENS } from "#protocol/kv.ts";
import type { EngineEvent } from "./native.ts";
import type { SimPage } from "./sim-fabric.ts";
import type { SimModel } from "./sim-model.ts";
import type { SimPool } from "./sim-pool.ts";
import { givenBlocks, type SimSequence } from "./sim-sequence.ts";

/**
 * The sending side of a simulated engine: puts blocks on the fabric as they fill.
 *
 *   begin -> announced block by block -> sent | send-failed (refused, unreachable, late, closed)
 */
export class SimSender {
  pages = 0;
  readonly #model: SimModel;
  readonly #pool: SimPool;
  readonly #rankId: string;
  readonly #settled: (sequence: SimSequence, event: EngineEvent) => void;

  constructor(
    model: SimModel,
    pool: SimPool,
    rankId: string,
    settled: (sequence: SimSequence, event: EngineEvent) => void,
  ) {
    this.#model = model;
    this.#pool = pool;
    this.#rankId = rankId;
    this.#settled = settled;
  }

  /** Announces every block that is complete and was not announced before. */
  written(sequence: SimSequence): void {
    const { exporting } = sequence;
    if (exporting === null) return;
    const { tokens } = sequence.spec.generation;
    for (; exporting.announced < givenBlocks(sequence); exporting.announced++) {
      const index = exporting.announced;
      const end = Math.min((index + 1) * BLOCK_TOKENS, tokens.length);
      if (sequence.length < end) return;
      const id = sequence.lease.blocks[index]!;
      if (this.#pool.state(id) === "filling") this.#pool.set(id, "sealed");
      this.#pool.set(id, "sending");
      const page: SimPage = {
        from: this.#rankId,
        handle: exporting.target.handle,
        epoch: exporting.target.epoch,
        modelHash: this.#model.modelHash,
        index,
        rows: this.#pool.rows(id, end - index * BLOCK_TOKENS),
      };
      this.#model.clock.after(this.#model.transferMs, () => this.#carry(sequence, page));
    }
  }

  /** Ends an export that is not over. `cause` null: all is acknowledged. */
  end(sequence: SimSequence, cause: string | null): void {
    const { exporting, handle } = sequence;
    if (exporting === null) return;
    sequence.exporting = null;
    exporting.deadline.cancel();
    const pages = (exporting.acked - Math.floor(exporting.target.cachedTokens / BLOCK_TOKENS)) * this.#model.attentions;
    const ms = this.#model.clock.monotonic() - exporting.startMs;
    const sent = { kind: "sent", handle, pages, bytes: pages * this.#model.pageBytes, ms } as const;
    this.#settled(sequence, cause === null ? sent : { kind: "send-failed", handle, cause });
  }

  #carry(sequence: SimSequence, page: SimPage): void {
    const { exporting } = sequence;
    if (exporting === null) return;
    const answer = this.#model.fabric.carry(exporting.target.host, exporting.target.port, page);
    if (answer === "lost") return;
    if (typeof answer === "number") {
      this.#model.clock.after(answer, () => this.#carry(sequence, page));
      return;
    }
    if (answer !== "ok" && answer !== "duplicate") {
      this.end(sequence, answer);
      return;
    }
    this.pages += this.#model.attentions;
    if (++exporting.acked === givenBlocks(sequence)) this.end(sequence, null);
  }
}
