import type { z } from "zod";
import { asMargayError, ERRORS, type ErrorCode, MargayError } from "../errors.ts";
import { Refused } from "../worker.ts";
import type { Bus, BusObserver, BusRandom, BusState, BusTimers, Subscription } from "./bus.ts";
import type { JournalEntry, JournalLimits, JournalOf } from "./journal.ts";
import type { Delivery, Link } from "./link.ts";
import { decode, encode } from "./wire.ts";

interface PendingRequest {
  readonly subject: string;
  readonly onReply: (delivery: Delivery) => void;
  readonly reject: (error: MargayError) => void;
}

/**
 * The contract of `Bus` over any `Link`. Owns the requests that wait for their replies.
 *
 *   request: sent -> answered | refused | nobody there | timed out | connection lost
 *
 * 1 a request ends exactly once; a reply that comes later is ignored
 * 2 when the connection is lost every waiting request ends at once
 * 3 nothing a handler does or receives stops the delivery of the next message
 */
export class TypedBus implements Bus {
  readonly #link: Link;
  readonly #timers: BusTimers;
  readonly #observer: BusObserver;
  readonly #replyPrefix: string;
  readonly #waiting = new Map<string, PendingRequest>();
  readonly #stateListeners = new Set<(state: BusState) => void>();
  #requests = 0;

  constructor(link: Link, timers: BusTimers, random: BusRandom, observer: BusObserver) {
    this.#link = link;
    this.#timers = timers;
    this.#observer = observer;
    this.#replyPrefix = `${link.inbox}.${random.hex(8)}.`;
    link.attach({
      onState: (state, detail) => this.#onState(state, detail),
      onDenied: (operation, subject) => this.#onDenied(operation, subject),
    });
  }

  get state(): BusState {
    return this.#link.state;
  }

  onState(listener: (state: BusState) => void): Subscription {
    this.#stateListeners.add(listener);
    return { unsubscribe: () => void this.#stateListeners.delete(listener) };
  }

  publish<S extends z.ZodType>(subject: string, schema: S, message: z.input<S>): void {
    this.#send(subject, checkedBytes(subject, schema, message), null);
  }

  request<Q extends z.ZodType, A extends z.ZodType>(
    subject: string,
    query: Q,
    message: z.input<Q>,
    answer: A,
    timeoutMs: number,
  ): Promise<z.output<A>> {
    return new Promise((resolve, reject) => {
      if (this.state !== "connected") throw this.#unavailable();
      const bytes = checkedBytes(subject, query, message);
      if (this.#requests++ === 0) this.#listenForReplies();
      const token = this.#requests.toString(36);
      const end = () => {
        this.#waiting.delete(token);
        timer.cancel();
      };
      const timer = this.#timers.after(timeoutMs, () => {
        end();
        reject(new MargayError("timeout", `No answer on ${subject} within ${timeoutMs} ms.`));
      });
      this.#waiting.set(token, {
        subject,
        onReply(delivery) {
          end();
          try {
            resolve(readReply(subject, answer, delivery));
          } catch (error) {
            reject(error);
          }
        },
        reject(error) {
          end();
          reject(error);
        },
      });
      try {
        if (!this.#send(subject, bytes, this.#replyPrefix + token)) throw this.#unavailable();
      } catch (error) {
        end();
        throw error;
      }
    });
  }

  subscribe<S extends z.ZodType>(subject: string, schema: S, handler: (message: z.output<S>) => void): Subscription {
    return this.#link.listen(subject, null, (delivery) => {
      const message = this.#read(subject, schema, delivery);
      if (message === null) return;
      try {
        handler(message.value);
      } catch (error) {
        this.#observer.onHandlerError(subject, error);
      }
    });
  }

  respond<Q extends z.ZodType, A extends z.ZodType>(
    subject: string,
    query: Q,
    answer: A,
    handler: (message: z.output<Q>) => Promise<z.input<A>> | z.input<A>,
    queue?: string,
  ): Subscription {
    return this.#link.listen(subject, queue ?? null, (delivery) => {
      const message = this.#read(subject, query, delivery);
      if (message === null) {
        // The sender held it against the same schema: one of the two is of another version, or it was damaged on its way.
        if (delivery.reply !== null) {
          this.#refuse(delivery.reply, new MargayError("incompatible", "The message is not of its schema."));
        }
        return;
      }
      void this.#answer(subject, answer, delivery.reply, async () => handler(message.value));
    });
  }

  journal<S extends z.ZodType>(limits: JournalLimits, schema: S): JournalOf<S> {
    const link = this.#link.journal(limits);
    const read = ({ seq, value }: JournalEntry<Uint8Array>): JournalEntry<z.output<S>> => {
      const parsed = schema.safeParse(decode(value));
      if (parsed.success) return { seq, value: parsed.data };
      throw new MargayError("internal", `bad entry in ${limits.name}: ${firstIssue(parsed.error)}`);
    };
    return {
      append: async (subject, after, message) =>
        await link.append(subject, after, checkedBytes(subject, schema, message)),
      read: async (subject, after, most) => (await link.read(subject, after, most)).map(read),
      add: async (subject, id, message) => await link.add(subject, id, checkedBytes(subject, schema, message)),
      async last(subject) {
        const entry = await link.last(subject);
        return entry === null ? null : read(entry);
      },
      purge: (subject) => link.purge(subject),
      list: (pattern) => link.list(pattern),
    };
  }

  nextEpoch(key: string): Promise<number> {
    return this.#link.nextEpoch(key);
  }

  flush(timeoutMs: number): Promise<void> {
    return this.#link.flush(timeoutMs);
  }

  close(timeoutMs: number): Promise<void> {
    return this.#link.close(timeoutMs);
  }

  async #answer(subject: string, schema: z.ZodType, reply: string | null, work: () => Promise<unknown>): Promise<void> {
    try {
      const bytes = checkedBytes(subject, schema, await work());
      if (reply !== null) this.#send(reply, bytes, null);
    } catch (error) {
      if (!(error instanceof MargayError) || error.code === "internal") this.#observer.onHandlerError(subject, error);
      if (reply !== null) this.#refuse(reply, error);
    }
  }

  /** The text of an unexpected error stays in the log of the process where it happened. */
  #refuse(reply: string, thrown: unknown): void {
    const known = thrown instanceof MargayError;
    const { code, message, retryAfterMs } = asMargayError(thrown);
    const detail = known ? message.slice(0, 500) : ERRORS[code].text;
    this.#send(reply, encode({ kind: "refused", code, detail, retryAfterMs } satisfies Refused), null);
  }

  #read<S extends z.ZodType>(subject: string, schema: S, delivery: Delivery): { readonly value: z.output<S> } | null {
    try {
      const parsed = schema.safeParse(decode(delivery.data));
      if (parsed.success) return { value: parsed.data };
      this.#observer.onRejected(subject, firstIssue(parsed.error));
    } catch (error) {
      this.#observer.onRejected(subject, asMargayError(error).message);
    }
    return null;
  }

  #send(subject: string, data: Uint8Array, reply: string | null): boolean {
    if (this.#link.send(subject, data, reply)) return true;
    this.#observer.onDropped(subject);
    return false;
  }

  #listenForReplies(): void {
    this.#link.listen(`${this.#replyPrefix}*`, null, (delivery) => {
      this.#waiting.get(delivery.subject.slice(this.#replyPrefix.length))?.onReply(delivery);
    });
  }

  #onState(state: BusState, detail: string): void {
    if (state !== "connected") {
      for (const request of [...this.#waiting.values()]) request.reject(this.#unavailable());
    }
    this.#observer.onState(state, detail);
    for (const listener of [...this.#stateListeners]) listener(state);
  }

  #onDenied(operation: "publish" | "subscribe", subject: string): void {
    this.#observer.onDenied(operation, subject);
    for (const request of [...this.#waiting.values()]) {
      if (operation !== "publish" || request.subject !== subject) continue;
      request.reject(new MargayError("internal", `This NATS user may not publish on ${subject}.`));
    }
  }

  #unavailable(): MargayError {
    return new MargayError("bus_unavailable", this.state === "closed" ? "The message bus is closed." : undefined);
  }
}

function readReply<A extends z.ZodType>(subject: string, answer: A, delivery: Delivery): z.output<A> {
  if (delivery.noResponders) throw new MargayError("worker_lost", `Nobody listens on ${subject}.`);
  const reply = decode(delivery.data);
  const parsed = answer.safeParse(reply);
  if (parsed.success) return parsed.data;
  const refused = Refused.safeParse(reply);
  if (!refused.success) throw new MargayError("internal", `bad reply on ${subject}: ${firstIssue(parsed.error)}`);
  const { code, detail, retryAfterMs } = refused.data;
  throw new MargayError(code satisfies ErrorCode, detail, { retryAfterMs });
}

function checkedBytes(subject: string, schema: z.ZodType, message: unknown): Uint8Array {
  const parsed = schema.safeParse(message);
  if (!parsed.success) throw new MargayError("internal", `bad message for ${subject}: ${firstIssue(parsed.error)}`);
  return encode(message);
}

/** Names the field and the rule, never the value. */
function firstIssue(error: z.ZodError): string {
  const issue = error.issues[0];
  if (issue === undefined) return "not of its schema";
  return `${issue.path.length === 0 ? "message" : issue.path.join(".")}: ${issue.message}`;
}
