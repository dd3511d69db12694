import { Worker } from "node:worker_threads";
import type { Grammar } from "#protocol/constraint.ts";
import { MargayError } from "#protocol/errors.ts";
import type { Clock, Timer } from "../clock.ts";
import type { Logger } from "../logger.ts";
import type { GrammarAnswer, GrammarQuestion, GrammarThreadData } from "./grammar-messages.ts";

/** Most grammars that wait to be vetted, and verdicts that are remembered. */
const MOST_VETS = 64;
const KEPT_VERDICTS = 1_000;
/** Library and vocabulary are loaded by then. */
const OPEN_MS = 20_000;
/** Threads that one vet may lose. */
const MOST_LOST = 2;
/** On a busy machine a thread's time passes more slowly than the clock's, but not for ever: a vet waits so long at least. */
const PATIENCE_MS = 30_000;
const MOST_LOOKS = 10;

const tooLong = (ms: number): string => `it takes longer than ${ms} ms to read`;

export interface GrammarsParts extends GrammarThreadData {
  readonly clock: Clock;
  readonly logger: Logger;
  /** Processor time that a grammar may take to be vetted, and the longest wait for any other answer. */
  readonly vetMs: number;
  readonly maskMs: number;
}

export interface TextListener {
  /** Tokens that may come next, a bit each. */
  onMask(mask: Uint32Array): void;
  /** The text cannot be followed any more. */
  onFault(sentence: string): void;
}

/** A text that is being written under a grammar. */
export interface GrammarText {
  push(token: number): void;
  close(): void;
}

interface Vet {
  readonly grammar: Grammar;
  readonly settle: (fault: string | null) => void;
  readonly fail: (error: MargayError) => void;
  /** Threads that ended, without a fault of anybody's grammar, while it waited. */
  lost: number;
}

/** Why a thread is over: the oldest question's grammar, something else, or `close`. */
type Cause = "grammar" | "thread" | "closed";

interface Thread {
  readonly worker: Worker;
  /** Questions without an answer, oldest first; of `vet` ones whom to tell. */
  readonly asked: (Vet | null)[];
  watch: Timer;
  over: boolean;
}

/**
 * Owns a thread that compiles grammars and follows texts, so that neither holds the event loop up.
 *
 *   none -> opening -> answering -> over (a fault, a question past its limit, `close`) -> none
 *
 * 1 a thread is opened by the first question, and anew by the first one after it was over
 * 2 answers come in the order of the questions; the oldest has a deadline, a vet one in the thread's own time
 * 3 with a thread the texts it followed are over; a vet whose grammar ended it has its verdict, the others are asked
 *   again, and fail when that is in vain
 * 4 a verdict is remembered, a failure is not
 */
export class Grammars {
  readonly #parts: GrammarsParts;
  readonly #verdicts = new Map<string, Promise<string | null>>();
  readonly #firsts = new Map<string, Promise<Uint32Array | null>>();
  readonly #texts = new Map<number, TextListener>();
  #thread: Thread | null = null;
  #nextId = 0;
  #vets = 0;
  /** Tokens of this turn of the event loop, by text. */
  #pushed: { readonly id: number; readonly token: number }[] = [];

  constructor(parts: GrammarsParts) {
    this.#parts = parts;
  }

  /**
   * Null: the grammar can be compiled within the limit; else why not, in words for whoever wrote it. Rejects with
   * `queue_full`, `timeout`, `internal` or `shutting_down` where that could not be found out.
   */
  vet(grammar: Grammar): Promise<string | null> {
    const key = `${grammar.kind} ${grammar.text}`;
    const known = this.#verdicts.get(key);
    if (known !== undefined) return known;
    if (this.#vets >= MOST_VETS) {
      return Promise.reject(
        new MargayError("queue_full", "Too many new grammars are being read.", { retryAfterMs: 1_000 }),
      );
    }
    this.#vets++;
    const verdict = new Promise<string | null>((settle, fail) => {
      this.#ask({ kind: "vet", grammar }, { grammar, settle, fail, lost: 0 });
    }).finally(() => this.#vets--);
    this.#verdicts.set(key, verdict);
    verdict.catch(() => this.#verdicts.delete(key));
    if (this.#verdicts.size > KEPT_VERDICTS) this.#verdicts.delete(this.#verdicts.keys().next().value!);
    return verdict;
  }

  /** What a text may begin with, remembered; null: that could not be found out. */
  first(grammar: Grammar, ends: readonly number[]): Promise<Uint32Array | null> {
    const key = `${ends.join(" ")} ${grammar.kind} ${grammar.text}`;
    const known = this.#firsts.get(key);
    if (known !== undefined) return known;
    const first = new Promise<Uint32Array | null>((settle) => {
      const text = this.open(grammar, ends, [], {
        onMask: (mask) => {
          text.close();
          settle(mask);
        },
        onFault: () => {
          this.#firsts.delete(key);
          settle(null);
        },
      });
    });
    this.#firsts.set(key, first);
    if (this.#firsts.size > KEPT_VERDICTS) this.#firsts.delete(this.#firsts.keys().next().value!);
    return first;
  }

  /** Begins a text of which `tokens` are there; a mask follows it and every token after it. */
  open(grammar: Grammar, ends: readonly number[], tokens: readonly number[], listener: TextListener): GrammarText {
    const id = this.#nextId++;
    this.#texts.set(id, listener);
    this.#ask({ kind: "open", id, grammar, ends, tokens }, null);
    return {
      push: (token) => this.#push(id, token),
      close: () => {
        if (!this.#texts.delete(id)) return;
        this.#pushed = this.#pushed.filter((one) => one.id !== id);
        this.#thread?.worker.postMessage({ kind: "close", id } satisfies GrammarQuestion);
      },
    };
  }

  /** Ends the thread; texts hear no more, vets are refused. */
  async close(): Promise<void> {
    for (const text of this.#texts.values()) text.onFault("the server is shutting down");
    this.#texts.clear();
    const thread = this.#thread;
    if (thread !== null) this.#over(thread, "closed", "the server is shutting down");
    await thread?.worker.terminate();
  }

  #push(id: number, token: number): void {
    if (!this.#texts.has(id)) return;
    this.#pushed.push({ id, token });
    if (this.#pushed.length > 1) return;
    queueMicrotask(() => {
      const pushed = this.#pushed;
      this.#pushed = [];
      if (pushed.length === 0) return;
      const ids = Int32Array.from(pushed, (one) => one.id);
      const tokens = Int32Array.from(pushed, (one) => one.token);
      this.#ask({ kind: "accept", ids, tokens }, null);
    });
  }

  #ask(question: GrammarQuestion, vet: Vet | null): void {
    this.#thread ??= this.#start();
    const { asked, worker } = this.#thread;
    asked.push(vet);
    worker.postMessage(question);
    if (asked.length === 1) this.#watch(this.#thread);
  }

  #start(): Thread {
    const { folder, vocabSize, clock } = this.#parts;
    const workerData: GrammarThreadData = { folder, vocabSize };
    // What the library prints is told with its fault.
    const worker = new Worker(new URL("grammar-thread.ts", import.meta.url), {
      workerData,
      stdout: true,
      stderr: true,
    });
    worker.unref();
    const thread: Thread = { worker, asked: [], watch: clock.after(0, () => {}), over: false };
    // Its readiness is the answer to a question nobody asked.
    thread.asked.push(null);
    this.#expect(thread, OPEN_MS);
    worker.on("message", (answer: GrammarAnswer) => this.#hear(thread, answer));
    worker.on("error", (error) => this.#over(thread, "thread", error.message.slice(0, 300)));
    worker.on("exit", () => this.#over(thread, "thread", "it ended"));
    return thread;
  }

  #hear(thread: Thread, answer: GrammarAnswer): void {
    if (thread.over) return;
    if (answer.kind === "fault") {
      this.#over(thread, "grammar", answer.sentence);
      return;
    }
    thread.asked.shift()?.settle(null);
    this.#watch(thread);
    if (answer.kind !== "masks") return;
    for (const { id, mask } of answer.masks) {
      const listener = this.#texts.get(id);
      if (mask !== null) listener?.onMask(mask);
      else if (this.#texts.delete(id)) listener?.onFault("a token is not of the grammar");
    }
  }

  /** The oldest question has its deadline from now on. */
  #watch(thread: Thread): void {
    thread.watch.cancel();
    const [oldest] = thread.asked;
    if (oldest === undefined) return;
    if (oldest === null) this.#expect(thread, this.#parts.maskMs);
    else {
      const before = thread.worker.cpuUsage();
      // A thread that ends tells no time; that it ended is noticed elsewhere.
      before.catch(() => {});
      const { clock, vetMs } = this.#parts;
      this.#expectVet(thread, oldest, before, clock.monotonic() + Math.max(PATIENCE_MS, MOST_LOOKS * vetMs));
    }
  }

  #expect(thread: Thread, ms: number): void {
    thread.watch = this.#parts.clock.after(ms, () => this.#over(thread, "thread", `it gave no answer in ${ms} ms`));
  }

  #expectVet(thread: Thread, vet: Vet, before: Promise<NodeJS.CpuUsage>, untilMs: number): void {
    const { vetMs, clock } = this.#parts;
    thread.watch = clock.after(vetMs, () => {
      if (clock.monotonic() < untilMs) this.#expectVet(thread, vet, before, untilMs);
      else {
        thread.asked.shift();
        vet.fail(new MargayError("timeout", "The grammar could not be read in time."));
        this.#over(thread, "thread", "a grammar was not read in time");
      }
      before
        .then((start) => thread.worker.cpuUsage(start))
        .then(({ user, system }) => {
          if (thread.asked[0] === vet && (user + system) / 1_000 >= vetMs)
            this.#over(thread, "grammar", tooLong(vetMs));
        })
        // A thread that is over tells no times.
        .catch(() => {});
    });
  }

  #over(thread: Thread, cause: Cause, sentence: string): void {
    if (thread.over) return;
    thread.over = true;
    thread.watch.cancel();
    if (this.#thread === thread) this.#thread = null;
    void thread.worker.terminate();
    const judged = cause === "grammar" ? (thread.asked[0] ?? null) : null;
    if (judged === null && cause !== "closed")
      this.#parts.logger.warn({ reason: sentence }, "the grammar thread is over");
    judged?.settle(sentence);
    for (const vet of thread.asked) {
      if (vet === null || vet === judged) continue;
      if (cause === "closed") vet.fail(new MargayError("shutting_down"));
      else if (judged === null && ++vet.lost >= MOST_LOST)
        vet.fail(new MargayError("internal", `grammars: ${sentence}`));
      else this.#ask({ kind: "vet", grammar: vet.grammar }, vet);
    }
    const texts = [...this.#texts.values()];
    this.#texts.clear();
    for (const text of texts) text.onFault(sentence);
  }
}
