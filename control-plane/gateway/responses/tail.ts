import type { FastifyReply, FastifyRequest } from "fastify";
import { callerOf } from "../auth.ts";
import { SseStream } from "../sse.ts";
import type { ResponsesHost } from "./responses-host.ts";
import { loadResponse } from "./stored-response.ts";

/** The log is looked at so often without a hint, and so soon after one that came before the entry it tells of. */
const LOOK_MS = 1_000;
const SOON_MS = 20;
/** A silent stream gets a comment this often. */
const KEEP_ALIVE_MS = 5_000;

/**
 * Streams a stored response from its log: the events behind number `after`, then those to come, up to its end. Ends
 * early, without an event that says so, where the response is deleted or this server stops: the client asks again.
 * Throws `not_found`.
 */
export async function followResponse(
  host: ResponsesHost,
  request: FastifyRequest,
  reply: FastifyReply,
  id: string,
  after: number,
): Promise<void> {
  const { log, clock } = host;
  const hint = new Hint();
  using _ = listening(host, id, hint);
  const { maker, lastSeq } = await loadResponse(host, id, callerOf(request).tenant.name, true);
  const stream = new SseStream({
    ...{ response: reply.raw, clock, limits: host.readerLimits, onSlow: () => {} },
    headers: () => {
      const headers = reply.getHeaders() as Record<string, string>;
      if (host.draining()) headers.connection = "close";
      reply.hijack();
      return headers;
    },
  });
  reply.raw.once("close", () => hint.give());
  for (let seq = lastSeq; ; ) {
    const { first, events } = maker.take();
    stream.send(events.slice(Math.max(0, after + 1 - first)).join(""));
    if (!stream.opened) stream.comment("waiting");
    if (maker.state === "ended" || reply.raw.closed || reply.raw.destroyed || host.draining()) break;
    const hinted = await hint.within(clock, LOOK_MS);
    stream.checkReader();
    if (stream.idleMs > KEEP_ALIVE_MS) stream.comment("waiting");
    let entries = await log.read(id, seq);
    if (hinted && entries.length === 0) {
      await clock.sleep(SOON_MS);
      entries = await log.read(id, seq);
    }
    for (const entry of entries) {
      maker.replay(entry.value);
      seq = entry.seq;
    }
    if (entries.length === 0 && !hinted && (await log.last(id)) === null) break;
  }
  stream.end("");
}

function listening(host: ResponsesHost, id: string, hint: Hint): Disposable {
  const subscription = host.log.listen(id, () => hint.give());
  return { [Symbol.dispose]: () => subscription.unsubscribe() };
}

/** Something may have happened. Given before it is waited for, it is not lost. */
class Hint {
  #given = false;
  #wake: (() => void) | null = null;

  give(): void {
    this.#given = true;
    this.#wake?.();
  }

  /** True when it was given, false after `ms`. */
  async within(clock: { after(ms: number, then: () => void): { cancel(): void } }, ms: number): Promise<boolean> {
    if (!this.#given) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#wake = resolve;
      const timer = clock.after(ms, resolve);
      await promise;
      timer.cancel();
      this.#wake = null;
    }
    const given = this.#given;
    this.#given = false;
    return given;
  }
}
