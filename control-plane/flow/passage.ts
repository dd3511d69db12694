import { blockHashes } from "#protocol/block-hash.ts";
import type { Started } from "#protocol/decode.ts";
import { asMargayError, type ErrorCode, MargayError } from "#protocol/errors.ts";
import type { GatewayId, RankId } from "#protocol/ids.ts";
import type { Reservation } from "#protocol/kv.ts";
import type { PrefillDone } from "#protocol/prefill.ts";
import type { Generation, RequestHead } from "#protocol/request.ts";
import type { Role } from "#protocol/worker.ts";
import { atMost } from "#service/at-most.ts";
import type { Clock } from "#service/clock.ts";
import { tracedHead } from "#service/tracing/tracing.ts";
import type { FleetWatch } from "../fleet/fleet-watch.ts";
import type { PlacementQuery } from "../placement/place.ts";
import { Interruption } from "./interruption.ts";
import type { FlowListener, FlowProgress, FlowRequest, RequestUse } from "./request-flow.ts";
import { TokenReceiver } from "./token-receiver.ts";
import type { Seat, Turn } from "./waiting-room.ts";
import { choicesOf, newAttempt, prefilledBy, transferOf, type Way, type WayAttempt } from "./way.ts";

const MOST_ATTEMPTS = 32;

/** Milliseconds spent in each phase, summed over attempts. */
export interface Timings {
  queueMs: number;
  prefillMs: number;
  transferMs: number;
  decodeMs: number;
}

/**
 * One request on its way: what outlives its attempts.
 *
 *   begun -> attempt 0 -> (attempt n)* -> ended
 *
 * P1 `tokens` is the only owner of what was generated: a new attempt starts from it, so nothing is repeated or skipped, and
 *    usage counts what the listener was told
 * P2 the client's leaving, the deadline and a listener that throws interrupt every wait
 */
export class Passage {
  readonly request: FlowRequest;
  readonly listener: FlowListener;
  readonly beganMs: number;
  readonly interruption = new Interruption();
  readonly tokens: TokenReceiver;
  readonly avoid = new Set<RankId>();
  readonly timings: Timings = { queueMs: 0, prefillMs: 0, transferMs: 0, decodeMs: 0 };
  /** Compute time of ranks, of all attempts, as far as they told. */
  readonly gpuMs: Record<Role, number> = { prefill: 0, decode: 0 };
  readonly #releases: Promise<void>[] = [];
  #cachedOnDecode = 0;
  attempt = 0;
  /** What is told of it afterwards. */
  readonly way: Way;
  readonly #newSpanId: () => string;
  /** Monotonic time until which it may wait for ranks with room. */
  waitsUntilMs = 0;
  /** Prompt tokens nobody had to compute, as the first attempt found them. */
  cachedTokens: number | null = null;
  /** The listener has all it wants. */
  enough = false;
  #onGap: (seq: number) => void = () => {};
  /** Of the tokens that an attempt begins with, by model hash. */
  readonly #hashes = new Map<string, { readonly length: number; readonly hashes: readonly string[] }>();
  readonly #onEnough = Promise.withResolvers<void>();
  readonly #clock: Clock;
  readonly #stop: () => void;

  constructor(
    request: FlowRequest,
    listener: FlowListener,
    clock: Clock,
    {
      onServed,
      onDuplicate,
      newSpanId,
    }: {
      readonly onServed: (tokens: number) => void;
      readonly onDuplicate: () => void;
      readonly newSpanId: () => string;
    },
  ) {
    this.request = request;
    this.listener = listener;
    this.#clock = clock;
    this.beganMs = clock.monotonic();
    this.#newSpanId = newSpanId;
    const { generation, generated = new Int32Array(0) } = request;
    this.way = {
      ...{ requestId: request.requestId, model: request.model, tenant: request.share.tenant },
      ...{ trace: request.trace ?? null, beganMs: clock.now(), promptTokens: generation.promptLength },
      ...{ attempts: [], firstTokenMs: null, endedMs: null, outcome: null, generatedTokens: 0 },
    };
    this.tokens = new TokenReceiver(generated, generation.maxNewTokens, this.beganMs, {
      wanted: () => !this.enough && this.interruption.error === null,
      onTokens: (tokens, logprobs) => {
        onServed(tokens.length);
        this.way.firstTokenMs ??= this.#epochMs();
        try {
          if (listener.onTokens(tokens, logprobs) === "more") return;
          this.enough = true;
          this.#onEnough.resolve();
        } catch (thrown) {
          this.interruption.raise(asMargayError(thrown));
        }
      },
      onGap: (seq) => this.#onGap(seq),
      onDuplicate,
      onDone: ({ gpuMs, cachedTokens }) => {
        this.gpuMs.decode += gpuMs;
        this.#cachedOnDecode = cachedTokens;
      },
    });
    const deadline = clock.after(request.deadlineMs - clock.now(), () =>
      this.interruption.raise(new MargayError("deadline_exceeded")),
    );
    const onAbort = (): void => {
      const { reason } = request.signal;
      this.interruption.raise(reason instanceof MargayError ? reason : new MargayError("cancelled"));
    };
    if (request.signal.aborted) onAbort();
    request.signal.addEventListener("abort", onAbort, { once: true });
    this.#stop = () => {
      deadline.cancel();
      request.signal.removeEventListener("abort", onAbort);
    };
  }

  /** Resolves when the listener said "enough". */
  get whenEnough(): Promise<void> {
    return this.#onEnough.promise;
  }

  get generated(): number {
    return this.tokens.next;
  }

  /** What an attempt has to do: the prompt and everything generated so far. */
  get generation(): Generation {
    const { generation } = this.request;
    if (this.generated === 0) return generation;
    const tokens = new Int32Array(generation.tokens.length + this.generated);
    tokens.set(generation.tokens);
    tokens.set(this.tokens.delivered, generation.tokens.length);
    return { ...generation, tokens };
  }

  /** Its turn among those that wait for ranks. */
  get turn(): Turn {
    const { share } = this.request;
    return { share, arrivedMs: this.beganMs, untilMs: this.waitsUntilMs, again: this.attempt > 0 };
  }

  /** A leg is being cancelled; in the end its rank tells what it had computed. */
  releasing(role: Role, release: Promise<number>): void {
    const told = release.then((ms) => {
      this.gpuMs[role] += ms;
    });
    this.#releases.push(told);
  }

  /** What the request used up, once every rank has told or time is over. */
  async use(waitMs: number): Promise<RequestUse> {
    if (this.#releases.length > 0) await atMost(this.#clock, waitMs, Promise.all(this.#releases));
    return {
      // A later attempt finds what was generated in the cache as well.
      cachedTokens: Math.min(this.request.generation.promptLength, this.cachedTokens ?? this.#cachedOnDecode),
      outputTokens: this.generated,
      prefillGpuMs: this.gpuMs.prefill,
      decodeGpuMs: this.gpuMs.decode,
    };
  }

  head(owner: GatewayId): RequestHead {
    return { requestId: this.request.requestId, attempt: this.attempt, owner, ...tracedHead(this.#leg.trace) };
  }

  /** An attempt begins. */
  noteAttempt(): void {
    const { trace } = this.way;
    const own = trace === null ? null : { traceId: trace.traceId, spanId: this.#newSpanId() };
    const { attempts } = this.way;
    // Of a request that meets busy ranks again and again the first and the latest attempts are told.
    if (attempts.length === MOST_ATTEMPTS) attempts.splice(1, 1);
    attempts.push(newAttempt(this.attempt, this.#epochMs(), own));
  }

  /** It has a place, after a wait. */
  noteSeat(fleet: FleetWatch, query: PlacementQuery, seat: Seat, waitedMs: number): void {
    this.timings.queueMs += waitedMs;
    Object.assign(this.#leg, choicesOf(fleet, query, seat), { placedMs: this.#epochMs() });
  }

  noteReserved(reservation: Reservation): Reservation {
    this.#leg.reservedMs = this.#epochMs();
    return reservation;
  }

  /** Its prompt is computed. */
  notePrefilled(outcome: PrefillDone): void {
    this.timings.queueMs += outcome.queueMs;
    this.timings.prefillMs += outcome.computeMs;
    this.gpuMs.prefill += outcome.gpuMs;
    this.cachedTokens ??= outcome.cachedTokens;
    Object.assign(this.#leg, { prefilledMs: this.#epochMs(), prefilled: prefilledBy(outcome) });
  }

  /** Its KV has arrived. */
  noteTransfer(started: Started): void {
    this.timings.transferMs += started.transferMs;
    this.#leg.transfer = transferOf(started);
  }

  /** Decoding has begun. */
  noteStarted(): void {
    this.#leg.startedMs = this.#epochMs();
  }

  /** The attempt is over. */
  noteEnd(failure: ErrorCode | null): void {
    const leg = this.way.attempts.at(-1);
    if (leg === undefined) return;
    Object.assign(leg, { endedMs: this.#epochMs(), failure, generatedTokens: this.generated });
  }

  /** The request is over. */
  noteOutcome(outcome: "ok" | ErrorCode): void {
    Object.assign(this.way, { endedMs: this.#epochMs(), outcome, generatedTokens: this.generated });
  }

  get #leg(): WayAttempt {
    return this.way.attempts.at(-1)!;
  }

  /** Finer than the wall clock, and never backwards. */
  #epochMs(): number {
    return this.way.beganMs + this.#clock.monotonic() - this.beganMs;
  }

  query(generation: Generation, localTokens: number): PlacementQuery {
    const { tokens, promptLength, maxNewTokens } = generation;
    return {
      model: this.request.model,
      hashes: (modelHash) => this.#hashesOf(modelHash, tokens),
      promptTokens: tokens.length,
      wholeTokens: promptLength + maxNewTokens,
      avoid: this.avoid,
      localTokens,
    };
  }

  /** Who is asked for missing tokens now. */
  askBy(onGap: (seq: number) => void): void {
    this.#onGap = onGap;
    this.tokens.listen(this.#clock.monotonic());
  }

  tell(phase: FlowProgress["phase"], prefill: FlowProgress["prefill"], decode: FlowProgress["decode"]): void {
    try {
      this.listener.onProgress({ phase, prefill, decode, waitedMs: this.#clock.monotonic() - this.beganMs });
    } catch (thrown) {
      this.interruption.raise(asMargayError(thrown));
    }
  }

  #hashesOf(modelHash: string, tokens: Int32Array): readonly string[] {
    const known = this.#hashes.get(modelHash);
    if (known?.length === tokens.length) return known.hashes;
    // The last token is always computed.
    const hashes = blockHashes(modelHash, tokens, tokens.length - 1);
    this.#hashes.set(modelHash, { length: tokens.length, hashes });
    return hashes;
  }

  end(): void {
    this.#stop();
  }
}
