import type { ModelName, RequestId, WorkerId } from "#protocol/ids.ts";
import type { Generation, Logprobs } from "#protocol/request.ts";

export interface FlowRequest {
  readonly requestId: RequestId;
  readonly model: ModelName;
  /** `tokens` is the prompt. */
  readonly generation: Generation;
  /** Epoch milliseconds. */
  readonly deadlineMs: number;
  readonly signal: AbortSignal;
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
