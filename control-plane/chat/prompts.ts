import { Worker } from "node:worker_threads";
import { MargayError } from "#protocol/errors.ts";
import type { ModelName } from "#protocol/ids.ts";
import type { Clock, Timer } from "#service/clock.ts";
import { MAX_JSON_DEPTH } from "./json-value.ts";
import { type Prompt, type PromptOptions, renderChat } from "./prompt.ts";
import type { PromptAnswer, PromptQuestion, PromptThreadData } from "./prompt-thread.ts";
import type { ServedModel } from "./served-model.ts";

/** Characters up to which a prompt is read at once: about two milliseconds. */
const SHORT = 4_096;
/** Most long prompts that wait to be read, and what the oldest one may take. */
const MOST_WAITING = 256;
const READ_MS = 30_000;

interface Waiting {
  readonly settle: (answer: PromptAnswer) => void;
  readonly fail: (error: MargayError) => void;
}

interface Thread {
  readonly worker: Worker;
  /** Prompts without an answer by number, oldest first. */
  readonly waiting: Map<number, Waiting>;
  watch: Timer | null;
}

/**
 * Owns a thread per model that reads long prompts, so that no stream waits for one: 100,000 tokens take longer than ten
 * steps of a model.
 *
 *   none -> reading -> over (a fault, a prompt past its limit, `close`) -> none
 *
 * 1 what is read is the same on the thread and off it
 * 2 a thread is opened by the first long prompt, and anew by the first one after it was over
 * 3 answers come in the order of the questions; the oldest has a deadline
 */
export class Prompts {
  readonly #clock: Clock;
  readonly #threads = new Map<ModelName, Thread>();
  #asked = 0;
  #closed = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** As `renderChat`. Rejects with `queue_full`, `timeout` or `internal` beside, where a long one could not be read. */
  async chat(model: ServedModel, messages: readonly unknown[], options: PromptOptions): Promise<Prompt> {
    if (!isLong([messages, options])) return renderChat(model, messages, options);
    return this.#ask(model, { kind: "chat", messages, options });
  }

  /** The tokens of a text, as `Tokenizer.encode`. Rejects likewise. */
  async text(model: ServedModel, text: string, limit: number): Promise<Int32Array<ArrayBuffer>> {
    if (text.length <= SHORT) return model.tokenizer.encode(text, limit);
    return (await this.#ask(model, { kind: "text", text, limit })).tokens;
  }

  /** Ends the threads; who waits is told so. */
  async close(): Promise<void> {
    this.#closed = true;
    const ended = [...this.#threads].map(([name, thread]) => {
      this.#over(name, thread, new MargayError("shutting_down"));
      return thread.worker.terminate();
    });
    await Promise.all(ended);
  }

  async #ask(
    model: ServedModel,
    asked: Omit<PromptQuestion & { kind: "chat" }, "id"> | Omit<PromptQuestion & { kind: "text" }, "id">,
  ): Promise<Prompt> {
    if (this.#closed) throw new MargayError("shutting_down");
    const thread = this.#threads.get(model.name) ?? this.#open(model);
    if (thread.waiting.size >= MOST_WAITING) {
      throw new MargayError("queue_full", "Too many long prompts are being read.", { retryAfterMs: 1_000 });
    }
    const id = this.#asked++;
    const answer = await new Promise<PromptAnswer>((settle, fail) => {
      thread.waiting.set(id, { settle, fail });
      thread.worker.postMessage({ ...asked, id } as PromptQuestion);
      if (thread.watch === null) this.#watch(model.name, thread);
    });
    if (answer.kind === "prompt") return answer.prompt;
    throw new MargayError(answer.code, answer.message, { param: answer.param });
  }

  #open({ name, folder, contextLength }: ServedModel): Thread {
    const workerData: PromptThreadData = { folder, contextLength };
    const worker = new Worker(new URL("prompt-thread.ts", import.meta.url), { workerData });
    worker.unref();
    const thread: Thread = { worker, waiting: new Map(), watch: null };
    const lost = (): void =>
      this.#over(name, thread, new MargayError("internal", "The thread that reads long prompts ended."));
    worker.on("message", (answer: PromptAnswer) => {
      const waiting = thread.waiting.get(answer.id);
      thread.waiting.delete(answer.id);
      this.#watch(name, thread);
      waiting?.settle(answer);
    });
    worker.on("error", lost);
    worker.on("exit", lost);
    this.#threads.set(name, thread);
    return thread;
  }

  /** The oldest prompt has its time from now on. */
  #watch(name: ModelName, thread: Thread): void {
    thread.watch?.cancel();
    thread.watch = null;
    if (thread.waiting.size === 0) return;
    thread.watch = this.#clock.after(READ_MS, () => {
      this.#over(name, thread, new MargayError("timeout", "Reading the prompt took too long."));
      void thread.worker.terminate();
    });
  }

  #over(name: ModelName, thread: Thread, error: MargayError): void {
    if (this.#threads.get(name) === thread) this.#threads.delete(name);
    thread.watch?.cancel();
    for (const { fail } of thread.waiting.values()) fail(error);
    thread.waiting.clear();
  }
}

/** More text than SHORT. What is nested deeper than any prompt may be is refused at once, so it counts as short. */
function isLong(input: unknown): boolean {
  let characters = 0;
  let level: readonly unknown[] = [input];
  for (let depth = 0; level.length > 0 && depth < 2 * MAX_JSON_DEPTH; depth++) {
    const inner: unknown[] = [];
    for (const value of level) {
      if (typeof value === "string") characters += value.length;
      else if (Array.isArray(value)) for (const item of value) inner.push(item);
      else if (typeof value === "object" && value !== null) {
        for (const [key, item] of Object.entries(value)) {
          characters += key.length;
          inner.push(item);
        }
      }
    }
    level = inner;
  }
  return characters > SHORT && level.length === 0;
}
