import { setImmediate as macrotask } from "node:timers/promises";
import { MargayError } from "#protocol/errors.ts";
import type { WorkerId } from "#protocol/ids.ts";
import type { Logprobs } from "#protocol/request.ts";
import type {
  FlowListener,
  FlowProgress,
  FlowRequest,
  RequestFlow,
  Settled,
} from "../../control-plane/flow/request-flow.ts";

export const PREFILL = "p-1" as WorkerId;
export const DECODE = "d-1" as WorkerId;

/** One call of `serve`, in the hands of a script. */
export class FlowCall {
  readonly request: FlowRequest;
  /** What the listener answered last. */
  verdict: "more" | "enough" = "more";
  /** Tokens delivered so far. */
  delivered = 0;
  ended = false;
  readonly #listener: FlowListener;
  readonly #aborted: Promise<never>;

  constructor(request: FlowRequest, listener: FlowListener) {
    this.request = request;
    this.#listener = listener;
    this.#aborted = new Promise((_, reject) => {
      const leave = () => reject(new MargayError("cancelled"));
      if (request.signal.aborted) leave();
      request.signal.addEventListener("abort", leave, { once: true });
    });
    this.#aborted.catch(() => {});
  }

  progress(phase: FlowProgress["phase"], waitedMs = 5): void {
    const placed = phase !== "waiting" && phase !== "waking";
    const ids = placed ? { prefill: PREFILL, decode: DECODE } : { prefill: null, decode: null };
    this.#listener.onProgress({ phase, ...ids, waitedMs });
  }

  /** Delivers tokens as one step would. */
  tokens(ids: ArrayLike<number>, logprobs: Logprobs | null = null): "more" | "enough" {
    this.delivered += ids.length;
    this.verdict = this.#listener.onTokens(Int32Array.from(ids), logprobs);
    return this.verdict;
  }

  /** Delivers `ids` in steps of `step` tokens until the listener has enough; rejects when aborted. */
  async stream(ids: ArrayLike<number>, step = 1): Promise<void> {
    for (let at = 0; at < ids.length && this.verdict === "more"; at += step) {
      this.tokens(Array.from(ids).slice(at, at + step));
      await this.orAborted(macrotask());
    }
  }

  /** Waits for `promise`, or rejects as the flow does when the request is cancelled. */
  async orAborted<T>(promise: Promise<T>): Promise<T> {
    return await Promise.race([promise, this.#aborted]);
  }

  /** Waits for the cancellation. */
  async untilAborted(): Promise<never> {
    return await this.#aborted;
  }
}

export type FlowScript = (call: FlowCall, index: number) => Promise<Partial<Settled> | undefined>;

/** Plays a script for each request: the flow as the gateway sees it. */
export class FakeFlow implements RequestFlow {
  readonly calls: FlowCall[] = [];
  script: FlowScript;

  constructor(script: FlowScript) {
    this.script = script;
  }

  async serve(request: FlowRequest, listener: FlowListener): Promise<Settled> {
    const call = new FlowCall(request, listener);
    const index = this.calls.push(call) - 1;
    try {
      const settled = await this.script(call, index);
      return {
        finish: "stop",
        completionTokens: call.delivered,
        cachedTokens: 0,
        prefill: PREFILL,
        decode: DECODE,
        attempts: 1,
        drafts: { verified: 0, accepted: 0 },
        timings: { queueMs: 1, prefillMs: 2, transferMs: 3, decodeMs: 4 },
        ...settled,
      };
    } finally {
      listener.onUse?.({ cachedTokens: 0, outputTokens: call.delivered, prefillGpuMs: 2, decodeGpuMs: 4 });
      call.ended = true;
    }
  }
}

/** Places the request, then answers with `ids` in steps of `step` tokens. */
export function answering(ids: ArrayLike<number>, step = 1, settled: Partial<Settled> = {}): FlowScript {
  return async (call) => {
    call.progress("placed");
    await call.stream(ids, step);
    return settled;
  };
}
