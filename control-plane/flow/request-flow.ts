import type { Bus } from "#protocol/bus/bus.ts";
import { NO_TRAFFIC, type Traffic } from "#protocol/demand.ts";
import { asMargayError, MargayError } from "#protocol/errors.ts";
import type { GatewayId, ModelName, RequestId, WorkerId } from "#protocol/ids.ts";
import type { Generation, Logprobs } from "#protocol/request.ts";
import type { TraceContext } from "#protocol/trace-context.ts";
import type { Clock } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import type { Tracing } from "#service/tracing/tracing.ts";
import type { FleetWatch } from "../fleet/fleet-watch.ts";
import { Attempt } from "./attempt.ts";
import type { Share } from "./fair-queue.ts";
import { Passage } from "./passage.ts";
import type { RequestBoard } from "./request-board.ts";
import { nextMove } from "./retry-policy.ts";
import { settle } from "./settle.ts";
import { withArrival, withEnd, withFirstToken } from "./traffic-count.ts";
import type { WaitingRoom } from "./waiting-room.ts";
import { RecentWays } from "./way.ts";
import { spansOf } from "./way-spans.ts";

export interface FlowRequest {
  readonly requestId: RequestId;
  readonly model: ModelName;
  readonly share: Share;
  /** `tokens` is the prompt. */
  readonly generation: Generation;
  /** Generated before by a flow that is gone: the request goes on behind them, and they are not told again. */
  readonly generated?: Int32Array;
  /** Epoch milliseconds. */
  readonly deadlineMs: number;
  /** Longest wait for ranks with room, where that is shorter than everybody's; null: everybody's. */
  readonly maxWaitMs: number | null;
  readonly signal: AbortSignal;
  /** The span that its attempts are children of, where it is traced. */
  readonly trace?: TraceContext | null;
}

export interface FlowProgress {
  readonly phase: "waiting" | "waking" | "placed" | "prefilling" | "decoding" | "moved";
  readonly prefill: WorkerId | null;
  readonly decode: WorkerId | null;
  readonly waitedMs: number;
}

export interface FlowListener {
  onProgress(progress: FlowProgress): void;
  /** Generated tokens in order, never twice. "enough": end the request now as finished (a stop string matched). */
  onTokens(tokens: Int32Array, logprobs: Logprobs | null): "more" | "enough";
  /** What it used up, however it ended: once, within USE_MS after its end. */
  onUse?(use: RequestUse): void;
}

/** What one request used up, failed attempts included. */
export interface RequestUse {
  /** Prompt tokens that nobody had to compute. */
  readonly cachedTokens: number;
  /** Told to the listener. */
  readonly outputTokens: number;
  /** Its shares of the steps of prefill and of decode ranks, milliseconds. */
  readonly prefillGpuMs: number;
  readonly decodeGpuMs: number;
}

/** How a request ended well. */
export interface Settled {
  readonly finish: "stop" | "length";
  readonly completionTokens: number;
  /** Prompt tokens that nobody had to compute. */
  readonly cachedTokens: number;
  /** null: the decode worker computed the prompt. */
  readonly prefill: WorkerId | null;
  /** null: the first token ended the request, so that nothing was decoded. */
  readonly decode: WorkerId | null;
  readonly attempts: number;
  /** Of the last attempt. */
  readonly drafts: { readonly verified: number; readonly accepted: number };
  readonly timings: {
    readonly queueMs: number;
    readonly prefillMs: number;
    readonly transferMs: number;
    readonly decodeMs: number;
  };
}

export interface RequestFlow {
  /** Serves one request to its end: exactly one of a result and a `MargayError`, before the deadline. */
  serve(request: FlowRequest, listener: FlowListener): Promise<Settled>;
}

export interface FlowParts {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly gatewayId: GatewayId;
  readonly fleet: FleetWatch;
  readonly waitingRoom: WaitingRoom;
  readonly board: RequestBoard;
  /** A decode rank computes at most this many prompt tokens itself; 0: none. */
  readonly localPrefillTokens: number;
  /** A request that only ever met busy ranks waits so long. */
  readonly waitMs: number;
  /** A first token that comes later is counted as late. */
  readonly ttftGoalMs: number;
  /** Where the spans of traced requests go; none: nothing is traced. */
  readonly tracing?: Pick<Tracing, "newSpanId" | "record">;
}

/** Ranks that are told to stop get so long to say what they had computed. */
export const USE_MS = 2_000;
const BUSY_RETRY_AFTER_MS = 5_000;

/**
 * Owns the requests being served.
 *
 *   accepted -> attempt 0 -> (failed -> attempt n)* -> settled | failed
 *
 * R1 exactly one end per request, before its deadline
 * R2 an attempt that ended in any way has given back its seat and cancelled what its ranks still hold
 * R3 a failure's verdict alone decides whether another attempt follows
 * R4 waiting for ranks with room is bounded by `waitMs` or the request's own limit, counted anew when tokens came
 */
export class Flow implements RequestFlow {
  readonly #parts: FlowParts;
  readonly #running = new Map<ModelName, number>();
  readonly #lastActiveMs = new Map<ModelName, number>();
  readonly #traffic = new Map<ModelName, Traffic>();
  /** What became of the latest requests. */
  readonly recent = new RecentWays();

  constructor(parts: FlowParts) {
    this.#parts = parts;
  }

  /** Requests of a model between `serve` and their end. */
  running(model: ModelName): number {
    return this.#running.get(model) ?? 0;
  }

  /** Monotonic time at which a request of the model last began or ended; null: never. */
  lastActiveMs(model: ModelName): number | null {
    return this.#lastActiveMs.get(model) ?? null;
  }

  /** What came and what it was, since the beginning. */
  traffic(model: ModelName): Traffic {
    return this.#traffic.get(model) ?? NO_TRAFFIC;
  }

  async serve(request: FlowRequest, listener: FlowListener): Promise<Settled> {
    const { clock, metrics, waitingRoom, ttftGoalMs, tracing } = this.#parts;
    const { model, share, generation } = request;
    this.#tally(model, (traffic) => withArrival(traffic, generation.promptLength));
    let first = true;
    const passage = new Passage(request, listener, clock, {
      onServed: (tokens) => {
        waitingRoom.charge(model, share, tokens);
        if (!first) return;
        first = false;
        this.#tally(model, (traffic) => withFirstToken(traffic, clock.monotonic() - passage.beganMs > ttftGoalMs));
      },
      onDuplicate: () => metrics.count("margay_duplicate_messages_total", { kind: "token-chunk" }),
      newSpanId: () => tracing?.newSpanId() ?? "",
    });
    this.recent.add(passage.way);
    this.#count(model, 1);
    try {
      const settled = await this.#untilSettled(passage);
      this.#tally(model, (traffic) => withEnd(traffic, generation.promptLength, settled));
      passage.noteOutcome("ok");
      return settled;
    } catch (thrown) {
      passage.noteOutcome(asMargayError(thrown).code);
      throw thrown;
    } finally {
      if (passage.way.trace !== null) tracing?.record(...spansOf(passage.way, () => tracing.newSpanId()));
      passage.end();
      void passage.use(USE_MS).then((use) => listener.onUse?.(use));
      this.#count(model, -1);
    }
  }

  /** Attempt after attempt, as the verdicts of their failures allow. */
  async #untilSettled(passage: Passage): Promise<Settled> {
    const { clock, logger, metrics, waitMs } = this.#parts;
    const mostMs = Math.min(waitMs, passage.request.maxWaitMs ?? waitMs);
    let busySinceMs: number | null = null;
    for (let failed = 0; ; passage.attempt++) {
      const beganMs = clock.monotonic();
      const { generated } = passage;
      passage.waitsUntilMs = (busySinceMs ?? beganMs) + mostMs;
      passage.noteAttempt();
      try {
        const settled = await this.#attempt(passage);
        passage.noteEnd(null);
        return settled;
      } catch (thrown) {
        passage.noteEnd(asMargayError(passage.interruption.error ?? thrown).code);
        if (passage.interruption.error !== null) throw passage.interruption.error;
        const error = asMargayError(thrown);
        if (passage.generated > generated) failed = 0;
        const move = nextMove(error, failed);
        if (move.kind === "fail") throw error;
        if (move.counts) failed++;
        const served = passage.generated > generated;
        if (move.counts || served) busySinceMs = null;
        else busySinceMs ??= beganMs;
        if (busySinceMs !== null && clock.monotonic() - busySinceMs > mostMs) {
          throw new MargayError("capacity_timeout", undefined, { retryAfterMs: BUSY_RETRY_AFTER_MS, cause: error });
        }
        metrics.count("margay_retries_total", { code: error.code });
        logger.info(
          { request: passage.request.requestId, attempt: passage.attempt, code: error.code },
          "an attempt failed",
        );
        if (move.counts || served) passage.tell("moved", null, null);
        await passage.interruption.pause(clock, move.pauseMs);
      }
    }
  }

  /** The life of a request, in order. Nothing else knows this order. */
  async #attempt(passage: Passage): Promise<Settled> {
    const attempt = new Attempt(this.#parts, passage);
    try {
      /* 1 */ const seat = await attempt.place();
      /* 2: before 3, for it is what the client waits for */ const prefill = await attempt.sendPrefill(seat);
      /* 3 */ attempt.reserveDecode(seat);
      /* 4, 5: the pages' destination is told and they move from rank to rank; 6 */ const first = await prefill.first;
      /* 7 */ const started = await attempt.startDecode(first);
      /* 8 */ const done = await attempt.streamTokens(started);
      /* 9 */ return settle(passage, seat, first, done);
    } finally {
      attempt.release();
    }
  }

  #tally(model: ModelName, next: (traffic: Traffic) => Traffic): void {
    this.#traffic.set(model, next(this.traffic(model)));
  }

  #count(model: ModelName, by: number): void {
    this.#running.set(model, this.running(model) + by);
    this.#lastActiveMs.set(model, this.#parts.clock.monotonic());
  }
}
