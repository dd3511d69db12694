import { z } from "zod";
import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import { TokenAcks, TokenBatch, type TokenChunk } from "#protocol/decode.ts";
import type { GatewayId, RankId, RequestId } from "#protocol/ids.ts";
import { PrefillDone, PrefillFailed } from "#protocol/prefill.ts";
import { subjects } from "#protocol/subjects.ts";
import type { Clock, Timer } from "#service/clock.ts";
import type { Metrics } from "#service/metrics.ts";

const PrefillOutcome = z.discriminatedUnion("kind", [PrefillDone, PrefillFailed]);
export type PrefillOutcome = z.output<typeof PrefillOutcome>;

/** One attempt of a request, as the address of messages. */
export interface BoardEntry {
  readonly requestId: RequestId;
  readonly attempt: number;
  /** Where it decodes; chunks of other ranks or epochs are not its. */
  readonly decode: { readonly rankId: RankId; readonly epoch: number };
  onPrefill(outcome: PrefillOutcome): void;
  onChunk(chunk: TokenChunk): void;
  /** Called every SWEEP_MS while the bus is connected. */
  onSweep(nowMs: number): void;
  /** The bus is back: messages for this attempt may have been lost. */
  onReconnect(nowMs: number): void;
  /** Tokens that arrived safely. */
  readonly received: number;
}

const ACK_MS = 100;
const SWEEP_MS = 500;

/**
 * Owns the table of attempts this control plane waits on, and the two subscriptions over which ranks answer.
 *
 *   posted -> (messages) -> taken down
 *
 * M1 a message whose request, attempt, rank or epoch is not on the board is counted and dropped
 * M2 tokens are acknowledged in one message per rank, at most ACK_MS late
 */
export class RequestBoard {
  readonly #entries = new Map<RequestId, BoardEntry>();
  readonly #unacked = new Map<RankId, Map<RequestId, { attempt: number; seq: number }>>();
  readonly #bus: Bus;
  readonly #clock: Clock;
  readonly #metrics: Metrics;
  readonly #gatewayId: GatewayId;
  #open: (Subscription | Timer)[] = [];

  constructor(parts: {
    readonly bus: Bus;
    readonly clock: Clock;
    readonly metrics: Metrics;
    readonly gatewayId: GatewayId;
  }) {
    this.#bus = parts.bus;
    this.#clock = parts.clock;
    this.#metrics = parts.metrics;
    this.#gatewayId = parts.gatewayId;
  }

  start(): void {
    this.#open = [
      this.#bus.subscribe(subjects.tokens(this.#gatewayId), TokenBatch, (batch) => this.#onBatch(batch)),
      this.#bus.subscribe(subjects.prefillOutcome(this.#gatewayId), PrefillOutcome, (outcome) =>
        this.#onPrefill(outcome),
      ),
      this.#clock.every(ACK_MS, () => this.#sendAcks()),
      this.#bus.onState((state) => {
        if (state !== "connected") return;
        for (const entry of [...this.#entries.values()]) entry.onReconnect(this.#clock.monotonic());
      }),
      this.#clock.every(SWEEP_MS, () => {
        if (this.#bus.state !== "connected") return;
        for (const entry of [...this.#entries.values()]) entry.onSweep(this.#clock.monotonic());
      }),
    ];
  }

  stop(): void {
    this.#sendAcks();
    for (const one of this.#open) "cancel" in one ? one.cancel() : one.unsubscribe();
    this.#open = [];
  }

  /** Attempts waited on. */
  get size(): number {
    return this.#entries.size;
  }

  /** Messages for this attempt go to `entry` until the returned function is called. */
  post(entry: BoardEntry): () => void {
    this.#entries.set(entry.requestId, entry);
    return () => {
      if (this.#entries.get(entry.requestId) === entry) this.#entries.delete(entry.requestId);
    };
  }

  #onBatch(batch: TokenBatch): void {
    for (const chunk of batch.chunks) {
      const entry = this.#entries.get(chunk.requestId);
      const expected =
        entry !== undefined &&
        entry.attempt === chunk.attempt &&
        entry.decode.rankId === batch.rankId &&
        entry.decode.epoch === batch.epoch;
      if (expected) {
        entry.onChunk(chunk);
        this.#ack(batch.rankId, chunk.requestId, chunk.attempt, entry.received);
      } else {
        this.#metrics.count("margay_duplicate_messages_total", { kind: "token-chunk" });
        // Its sender keeps the tail of an ended request until somebody has it.
        if (chunk.done !== null)
          this.#ack(batch.rankId, chunk.requestId, chunk.attempt, chunk.seq + chunk.tokens.length);
      }
    }
  }

  #onPrefill(outcome: PrefillOutcome): void {
    const entry = this.#entries.get(outcome.head.requestId);
    if (entry === undefined || entry.attempt !== outcome.head.attempt) {
      this.#metrics.count("margay_duplicate_messages_total", { kind: outcome.kind });
      return;
    }
    entry.onPrefill(outcome);
  }

  #ack(rankId: RankId, requestId: RequestId, attempt: number, seq: number): void {
    let acks = this.#unacked.get(rankId);
    if (acks === undefined) {
      acks = new Map();
      this.#unacked.set(rankId, acks);
    }
    acks.set(requestId, { attempt, seq });
  }

  #sendAcks(): void {
    for (const [rankId, acks] of this.#unacked) {
      const list = [...acks].map(([requestId, ack]) => ({ requestId, ...ack }));
      this.#bus.publish(subjects.acks(rankId), TokenAcks, { kind: "token-acks", acks: list });
    }
    this.#unacked.clear();
  }
}
