import type { CacheCounters, CacheTier, SequenceHandle } from "#protocol/kv.ts";
import type { BlockState } from "#protocol/lifecycle.ts";
import type { Generation } from "#protocol/request.ts";
import type { GroupEngine, GroupOptions } from "./group-engine.ts";
import { loadAddon } from "./load-addon.ts";

/**
 * Everything that crosses the native boundary. `native/src/addon/addon.cc` defines the same names in the same order.
 * Handles, small structs, token arrays and block ids cross; tensors, logits, weights and KV bytes never do.
 *
 * Errors thrown by native carry `code` (a `NativeErrorCode`); validation here is no more than "would crash".
 */
export type NativeErrorCode =
  | "stale_handle"
  | "no_slot"
  | "no_blocks"
  | "too_long"
  | "bad_state"
  | "bad_argument"
  | "queue_full"
  | "checkpoint"
  | "io"
  | "closed"
  | "group_lost";

export interface EngineOptions {
  /** Checkpoint folder: config.json and safetensors. */
  readonly modelFolder: string;
  /** `auto` is `cpu`. */
  readonly backend: "auto" | "ref" | "cpu";
  /** Threads that compute, the engine thread included; 0: one per core this process may run on. */
  readonly threads: number;
  /**
   * Each of them stays on a core of its own, where there are as many. Left out or false: the system places them. For a
   * process whose cores no other computes on: two that pin themselves to the same cores halve each other.
   */
  readonly pinThreads?: boolean;
  /** Folder of packed weights shared by the processes of this host; null: every process packs for itself. */
  readonly packedFolder: string | null;
  /** Eps of q_a_layernorm and kv_a_layernorm; null: the checkpoint's rms_norm_eps (spec 2.2). */
  readonly latentNormEps: number | null;
  /** `int8`: linear layers in int8, made at load with one scale per output; faster where memory is the limit, and lossy. */
  readonly weightFormat: "checkpoint" | "int8";
  /** A sequence's logits are bit-equal whatever the batch, the cut into steps, the threads and the peer its pages come from. */
  readonly deterministic: boolean;
  /**
   * Most drafts per sequence and step, 0 to 7, made by the checkpoint's draft layer. 0: the layer is not loaded, and has no
   * part in the layout of the KV pool. A prefill engine fills the layer's KV and makes none.
   */
  readonly speculation: number;
  /** Drafts for every stream in every step. Left out or false: where, as measured, it pays. */
  readonly draftAlways?: boolean;
  /** Most sequences at once. */
  readonly slots: number;
  /** Blocks of the KV pool; 0: as many as `kvBytes` holds. */
  readonly kvBlocks: number;
  readonly kvBytes: number;
  /** Bytes for cached blocks that the pool has no room for; 0: they are lost. */
  readonly kvTierBytes: number;
  /** Folder of the file that holds them, nameless and gone with the engine; null: memory. */
  readonly kvTierFolder: string | null;
  /** Most rows (tokens) of one step. */
  readonly maxStepTokens: number;
  /** `decode` opens the KV endpoint. */
  readonly role: "prefill" | "decode";
  readonly rankId: string;
  /** Host to listen on for KV announcements, and port (0: any). Unused by the prefill role. */
  readonly kvHost: string;
  readonly kvPort: number;
  /** `auto` maps the peer's pool when both share a host, else TCP. */
  readonly kvTransport: "auto" | "tcp";
  /** TLS of KV over TCP, with certificates on both sides; null: it is not encrypted. */
  readonly kvTls: KvTlsFiles | null;
  /** Absent: the worker's only rank, which exchanges nothing with nobody. */
  readonly group?: GroupOptions;
}

/** PEM files, read for every connection. Peers must show a certificate of the authority, whatever name is in it. */
export interface KvTlsFiles {
  /** With those between it and the authority. */
  readonly certificate: string;
  readonly key: string;
  readonly authority: string;
}

/** What was opened. */
export interface EngineInfo {
  readonly modelHash: string;
  readonly layout: string;
  readonly vocabSize: number;
  readonly contextLength: number;
  readonly attentions: number;
  readonly pageBytes: number;
  readonly kvBlocks: number;
  readonly slots: number;
  readonly maxStepTokens: number;
  /** As asked for; 0 where the checkpoint has no draft layer. */
  readonly speculation: number;
  readonly backend: "ref" | "cpu";
  /** Code path chosen by feature bits, for example "avx512-bf16". */
  readonly isa: string;
  readonly threads: number;
  /** Port of the KV endpoint; 0 for the prefill role. */
  readonly kvPort: number;
  readonly hostKey: string;
  readonly weightBytes: number;
  /** True when the packed file was already there. */
  readonly packedHit: boolean;
  /** What opening took, in milliseconds: kernels chosen and timed, weights packed or mapped, the KV pool made and touched. */
  readonly openMs: { readonly kernels: number; readonly weights: number; readonly pool: number };
  /** Warnings of the loader (unknown tensors), for the log. */
  readonly warnings: readonly string[];
}

export interface SequenceSpec {
  readonly generation: Generation;
  /** `compute`: runnable at once. `receive`: waits for pages until `attach`, or lapses at `deadlineMs` (epoch ms). */
  readonly mode: "compute" | "receive";
  /** Of a `receive` sequence; `compute` ones have none. */
  readonly deadlineMs: number;
  /**
   * Tokens that blocks are kept for at once; at least `generation.tokens` (which allow for one token to be produced), at
   * most what the sequence can come to: promptLength + maxNewTokens, or the context length. Plans may add to it.
   */
  readonly reserve: number;
}

export interface OpenedSequence {
  readonly handle: SequenceHandle;
  /** Prompt tokens found in the prefix cache; fewer than there are. */
  readonly cachedTokens: number;
}

/** Where the pages of a sequence go. */
export interface ExportTarget {
  readonly host: string;
  readonly port: number;
  readonly hostKey: string;
  readonly epoch: number;
  readonly handle: SequenceHandle;
  readonly cachedTokens: number;
  readonly deadlineMs: number;
}

/**
 * What one step did: an entry per sequence that the plan had rows of, then one per sequence of the batch that decoded.
 * An entry whose sequence had ended or was closed meanwhile is `skipped`.
 */
export interface StepResult {
  /** Counts steps from 0. */
  readonly step: number;
  /** Number of the plan the step began with, as `submit` returned it; -1: the batch was repeated. */
  readonly plan: number;
  /**
   * Per entry: slot, generation, rows computed, how many of `tokens` are its own, finish code, KV length after the step.
   * A `skipped` entry has 0 rows, no token and length 0.
   */
  readonly entries: Int32Array;
  /** Tokens produced, those of the first entry first. */
  readonly tokens: Int32Array;
  /** Per token of a sequence that asked for them, in order. */
  readonly logprobs: readonly StepLogprobs[];
  readonly startMs: number;
  readonly computeMs: number;
}
export interface StepLogprobs {
  readonly slot: number;
  readonly chosen: number;
  readonly ids: Int32Array;
  readonly values: Float32Array;
}

/** Something that happened outside a step. Delivered in order, one call for all that happened since the last. */
export type EngineEvent =
  /** A full set of pages arrived and verified: `attach` may be called. */
  | {
      readonly kind: "received";
      readonly handle: SequenceHandle;
      readonly pages: number;
      readonly bytes: number;
      readonly ms: number;
    }
  /** Not all pages will come; not told when the deadline is the cause (`lapsed` is). `attach(handle, null)` still works. */
  | { readonly kind: "receive-failed"; readonly handle: SequenceHandle; readonly cause: string }
  | {
      readonly kind: "sent";
      readonly handle: SequenceHandle;
      readonly pages: number;
      readonly bytes: number;
      readonly ms: number;
    }
  | { readonly kind: "send-failed"; readonly handle: SequenceHandle; readonly cause: string }
  /**
   * A prefill engine with a draft layer has chosen the token after a prompt: told before the layer's pass. `finish` is a
   * code as in a step's entries, `computeMs` what the step took so far. The step's own result has the token again.
   */
  | {
      readonly kind: "first-token";
      readonly handle: SequenceHandle;
      readonly token: number;
      readonly finish: number;
      readonly computeMs: number;
      readonly logprobs: StepLogprobs | null;
    }
  /** A reservation passed its deadline; its sequence is closed. */
  | { readonly kind: "lapsed"; readonly handle: SequenceHandle }
  /** The group ended: a member did not do its part in time, or a connection broke. `guilty`: its place; null: nobody's. */
  | { readonly kind: "group-lost"; readonly epoch: number; readonly guilty: number | null; readonly cause: string }
  /** Changes of the prefix cache: concatenated 16-byte hashes. */
  | { readonly kind: "kv"; readonly stored: Uint8Array; readonly removed: Uint8Array };

/** Counters since the start; gauges now. */
export interface EngineStats {
  readonly blocks: Readonly<Record<BlockState, number>>;
  /** Free, or cached and used by nobody. */
  readonly blocksAvailable: number;
  readonly sequences: number;
  readonly steps: number;
  readonly computeMs: number;
  readonly prefillTokens: number;
  readonly decodeTokens: number;
  readonly prefixCachedTokens: number;
  /** Drafts that the draft layer made, that the model verified, and that became tokens which cost no step of their own. */
  readonly draftsProposed: number;
  readonly draftsVerified: number;
  readonly draftsAccepted: number;
  readonly cache: Readonly<Record<CacheTier, CacheCounters>>;
  readonly pagesSent: number;
  readonly bytesSent: number;
  readonly pagesReceived: number;
  readonly bytesReceived: number;
  /** Announced pages that were refused, by cause (see FRAME_REFUSALS). */
  readonly framesRefused: Readonly<Record<FrameRefusal, number>>;
  /** Pages announced by P that D already had or got before: harmless. */
  readonly duplicatePages: number;
}

/** Spans of native threads. Per span in `spans`: index of its name, index of its thread, start (epoch ms), length (ms). */
export interface NativeTrace {
  readonly names: readonly string[];
  readonly threads: readonly string[];
  readonly spans: Float64Array;
}

/** Why a receiver refuses an announced page or a connection. */
export const FRAME_REFUSALS = [
  "checksum",
  "truncated",
  "stale_epoch",
  "stale_handle",
  "unknown_page",
  "incompatible",
  "stale_source",
  "malformed",
  "late",
] as const;
export type FrameRefusal = (typeof FRAME_REFUSALS)[number];

/** Never called from inside a call of the engine, nor after `close` was called. */
export interface EngineListener {
  /**
   * Called once per finished step, planned or repeated, in order; events that the step caused come before. Steps that
   * repeat the batch are told up to 8 ms late, several at once; what a sequence or the planner waits for is never late.
   */
  onStep(result: StepResult): void;
  onEvents(events: readonly EngineEvent[]): void;
  /** The engine thread failed and will do nothing more. */
  onFatal(message: string): void;
}

/** One engine: one model, one KV pool, one thread that steps. */
export interface Engine {
  readonly info: EngineInfo;
  /** Of one of several ranks. */
  readonly group?: GroupEngine | null;
  /** Announced epoch of this rank: incoming KV must name it. Set once, before any sequence is opened. */
  setEpoch(epoch: number): void;
  /**
   * Takes a slot and blocks. Throws `no_slot`, `no_blocks`, `too_long` (the context has no room for one token after
   * `generation.tokens`), `bad_argument` (an id outside the vocabulary, or nothing left of maxNewTokens), `bad_state`
   * (`receive` on a prefill engine).
   */
  openSequence(spec: SequenceSpec): OpenedSequence;
  /**
   * Sends the pages of a `compute` sequence to a decode rank as they are computed; ends with `sent` or `send-failed`.
   * May be called while it is computed or after: what is written by then is sent at once. Once (else `bad_state`).
   */
  exportTo(handle: SequenceHandle, target: ExportTarget): void;
  /**
   * Makes a `receive` sequence runnable. With a token: all pages must have arrived (else `bad_state`), the token is
   * appended as generated (whether it ends the request is the caller's to see). With null: what is missing of the prompt
   * is to be computed by steps. Returns how many of the given tokens need no computing: all of them; with null the
   * leading blocks that were cached or arrived whole, or all but the last token where everything arrived and the last
   * block is not full.
   */
  attach(handle: SequenceHandle, firstToken: number | null): number;
  /**
   * Ends a sequence: full blocks go to the prefix cache when `keep`, everything else is free. Takes effect at once for
   * later calls, for a running step at its end. A sequence being sent is held until the peer has acknowledged or the
   * deadline passed; if part of its prompt was not computed yet, the transfer is aborted. Throws `stale_handle`.
   * Returns true when its rows are in the running step: that step's result has a `skipped` entry of it, and slot and
   * blocks are free (or, being sent, on their way to be) when that is told. Else they are so at once.
   */
  closeSequence(handle: SequenceHandle, keep: boolean): boolean;
  /**
   * The tokens its next one is chosen among: bit i of word w stands for token 32 w + i. From the first mask on, every
   * token of the sequence takes one of its own, and the sequence sits out while there is none; the others go on. Empty:
   * the mask is still to come. null: no masks any more. Throws `stale_handle`, `bad_argument` (not a bit for each token of
   * the vocabulary, rounded up to words; or no token is allowed).
   */
  setMask(handle: SequenceHandle, mask: Uint32Array | null): void;
  /**
   * Queues a change of what the engine does, to take effect with a step of its own. Per entry: slot, generation, rows,
   * reserve.
   *
   *   rows r, reserve 0   computes the next r known tokens in this step only (a chunk of a prompt; a single decode step)
   *   rows 0, reserve n   is in the batch from this step on: decodes in every step, planned or not, and may grow to n tokens
   *   rows r, reserve n   computes r known tokens in this step, is in the batch from the next one on
   *   rows 0, reserve 0   is out of the batch from this step on; keeps its blocks
   *
   * The engine keeps the batch: with no plan queued it repeats it, and a sequence leaves it by itself when it ends. A
   * sequence produces a token in the step that computes its last known token, which a queued step may be about to
   * produce. At its reserve a sequence sits out, until a plan reserves more. Blocks are taken when the plan is submitted,
   * never given back before the sequence is closed, and cut at what the sequence can come to. The batch is repeated
   * until 1024 results wait to be told. Rows that would give a token for which a mask is awaited stop one short of it.
   *
   * At most two plans may be queued, the running one included; a third throws `queue_full`. Throws `stale_handle`
   * (closed), `bad_state` (waits for pages; rows of a sequence in the batch), `bad_argument` (an empty plan, a slot twice,
   * more rows than there are to compute or than blocks are kept for, a prompt that is not computed joins, batch and rows
   * are more than the step holds), `no_blocks` (to grow); then nothing has changed. An entry of a sequence that has ended
   * is accepted: skipped when it has rows, else ignored. Returns the plan's number, counted from 0.
   */
  submit(plan: Int32Array): number;
  stats(): EngineStats;
  /** Hashes in the prefix cache, concatenated. */
  prefixHashes(): Uint8Array;
  /** Walks pool, sequences and cache: null, or the first broken invariant in words (B1..B5). */
  checkInvariants(): string | null;
  /** Begins to record what the native threads of this process do; forgets what was recorded before. */
  startTrace(): void;
  /** Ends it and tells the latest 65,536 spans. */
  takeTrace(): NativeTrace;
  /** Ends the engine thread and all connections. Idempotent. */
  close(): Promise<void>;
}
/** Loads the model and starts the engine. Rejects with `checkpoint` or `io` and a sentence that names the cause. */
export function openEngine(options: EngineOptions, listener: EngineListener): Promise<Engine> {
  return loadAddon().openEngine(options, listener);
}

export { asGroupEngine, type GroupEngine, type GroupOptions, type GroupSpec } from "./group-engine.ts";
export { refusalCode } from "./refusal-code.ts";
export { FINISH, finishReason, rowsOf, STEP_ENTRY_WIDTH, type StepEntry, stepEntries } from "./step-entries.ts";
export { createStepLoop, type StepLoop } from "./step-loop.ts";
export { type PlanEntry, packPlan, type StepPlan, sameHandle, sumPlans } from "./step-plan.ts";
