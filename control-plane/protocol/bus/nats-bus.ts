import {
  connect,
  Events,
  type NatsConnection,
  type NatsError,
  ErrorCode as NatsErrorCode,
  type Status,
  StorageType,
} from "nats";
import { asMargayError, MargayError } from "../errors.ts";
import { EPOCH_BUCKET, inboxPrefix } from "../subjects.ts";
import type { Bus, BusObserver, BusRandom, BusState, BusTimers, Subscription } from "./bus.ts";
import type { JournalLimits, LinkJournal } from "./journal.ts";
import type { Delivery, Link, LinkListener } from "./link.ts";
import { NatsJournal } from "./nats-journal.ts";
import { TypedBus } from "./typed-bus.ts";

/** Files (PEM) of the connection's TLS, read at every attempt to connect. */
export interface NatsTls {
  /** null: the authorities Node knows. */
  readonly caFile: string | null;
  /** What is shown to the server; null: nothing. */
  readonly certificate: { readonly certFile: string; readonly keyFile: string } | null;
}

export interface NatsOptions {
  readonly url: string;
  /** null: the server asks for none. */
  readonly user: string | null;
  readonly password: string | null;
  /** TLS or nothing; null: that too where the address begins with `tls://`, else as the server has it. */
  readonly tls: NatsTls | null;
  /** Which of the server's users this is; names the inbox. */
  readonly role: string;
  /** Shown by the server's monitoring. */
  readonly name: string;
  /** Longest wait for a server that does not answer yet. */
  readonly connectTimeoutMs: number;
  readonly timers: BusTimers;
  readonly random: BusRandom;
  readonly observer: BusObserver;
}

/** A server that answers no ping for three of these is dead: TCP alone would not tell for minutes. */
const PING_MS = 1_000;
const MOST_PINGS_OUT = 2;
/** One attempt to connect. */
const DIAL_MS = 2_000;
const RECONNECT_MS = 100;
const RECONNECT_JITTER_MS = 300;
const JETSTREAM_MS = 5_000;
/** Keys of epochs nobody asked for since; the bucket's revision, the epoch itself, only ever grows. */
const EPOCH_KEY_TTL_MS = 24 * 3600 * 1000;

/**
 * Connects to a NATS server and stays connected: after an outage it reconnects for as long as it takes.
 * Rejects with `bus_unavailable` and one clear sentence when no server answers in time, or when it refuses the user.
 */
export async function connectNats(options: NatsOptions): Promise<Bus> {
  const connection = await dial(options);
  return new TypedBus(
    new NatsLink(connection, options.role, options.timers, options.random.hex(8)),
    options.timers,
    options.random,
    options.observer,
  );
}

async function dial(options: NatsOptions): Promise<NatsConnection> {
  const { timers, random, user, password } = options;
  const shown = withoutPassword(options.url);
  let outOfTime = false;
  const deadline = timers.after(options.connectTimeoutMs, () => {
    outOfTime = true;
  });
  try {
    for (;;) {
      try {
        return await connect({
          servers: options.url,
          name: options.name,
          inboxPrefix: inboxPrefix(options.role),
          timeout: Math.min(DIAL_MS, options.connectTimeoutMs),
          pingInterval: PING_MS,
          maxPingOut: MOST_PINGS_OUT,
          maxReconnectAttempts: -1,
          ignoreAuthErrorAbort: true,
          ignoreClusterUpdates: true,
          // Names are found as every other program of the machine finds them: search domains and /etc/hosts included.
          resolve: false,
          reconnectDelayHandler: () => RECONNECT_MS + random.uniform() * RECONNECT_JITTER_MS,
          ...tlsOf(options),
          ...(user === null ? {} : { user }),
          ...(password === null ? {} : { pass: password }),
        });
      } catch (error) {
        if (isNats(error, NatsErrorCode.AuthorizationViolation)) {
          const who = user === null ? "a client without a user" : `user ${user} or its password`;
          throw new MargayError("bus_unavailable", `The NATS server at ${shown} refuses ${who}.`);
        }
        if (outOfTime) {
          const cause = error instanceof Error ? error.message : String(error);
          throw new MargayError("bus_unavailable", `No NATS server answers at ${shown} (${cause}).`, { cause: error });
        }
        await timers.sleep(RECONNECT_MS);
      }
    }
  } finally {
    deadline.cancel();
  }
}

/** With `tls` set the library refuses a server that has none. */
function tlsOf({ tls, url }: NatsOptions): object {
  if (tls === null) return url.startsWith("tls://") ? { tls: {} } : {};
  const { caFile, certificate } = tls;
  return { tls: { ...(caFile === null ? {} : { caFile }), ...(certificate ?? {}) } };
}

/** The door to the `nats` package. */
class NatsLink implements Link {
  readonly inbox: string;
  readonly #connection: NatsConnection;
  readonly #timers: BusTimers;
  readonly #stamp: string;
  #journals = 0;
  #state: BusState = "connected";
  #listener: LinkListener | null = null;

  constructor(connection: NatsConnection, role: string, timers: BusTimers, stamp: string) {
    this.#stamp = stamp;
    this.#connection = connection;
    this.#timers = timers;
    this.inbox = inboxPrefix(role);
    void this.#watch();
    void connection.closed().then((error) => this.#become("closed", error?.message ?? "closed"));
  }

  get state(): BusState {
    return this.#state;
  }

  attach(listener: LinkListener): void {
    this.#listener = listener;
  }

  send(subject: string, data: Uint8Array, reply: string | null): boolean {
    // While disconnected the library would keep messages without a bound, and forget them when it reconnects.
    if (this.#state !== "connected") return false;
    try {
      if (reply === null) this.#connection.publish(subject, data);
      else this.#connection.publish(subject, data, { reply });
      return true;
    } catch (error) {
      if (isNats(error, NatsErrorCode.MaxPayloadExceeded)) {
        const limit = this.#connection.info?.max_payload;
        throw new MargayError(
          "payload_too_large",
          `A message of ${data.byteLength} bytes exceeds the NATS server's max_payload of ${limit} bytes.`,
        );
      }
      return false;
    }
  }

  listen(subject: string, queue: string | null, onDelivery: (delivery: Delivery) => void): Subscription {
    if (this.#connection.isClosed()) return { unsubscribe() {} };
    const subscription = this.#connection.subscribe(subject, {
      ...(queue === null ? {} : { queue }),
      callback(error, message) {
        // A denial comes here and to the status iterator; it is told once, there.
        if (error !== null) return;
        const noResponders = message.data.byteLength === 0 && message.headers?.code === 503;
        try {
          onDelivery({ subject: message.subject, data: message.data, reply: message.reply || null, noResponders });
        } catch (thrown) {
          // Thrown from here it would leave the client's parser in the middle of a message; so it ends the process alone.
          queueMicrotask(() => {
            throw thrown;
          });
        }
      },
    });
    return {
      unsubscribe: () => {
        if (!this.#connection.isClosed()) subscription.unsubscribe();
      },
    };
  }

  journal(limits: JournalLimits): LinkJournal {
    const connected = () => this.#state === "connected";
    return new NatsJournal(this.#connection, limits, `${this.#stamp}-${this.#journals++}`, connected);
  }

  async nextEpoch(key: string): Promise<number> {
    if (this.#state !== "connected") throw new MargayError("bus_unavailable");
    try {
      const store = this.#connection.jetstream({ timeout: JETSTREAM_MS }).views;
      const options = { history: 1, storage: StorageType.File, ttl: EPOCH_KEY_TTL_MS, timeout: JETSTREAM_MS };
      const bucket = await store.kv(EPOCH_BUCKET, options);
      return await bucket.put(key, new Uint8Array());
    } catch (error) {
      throw new MargayError("bus_unavailable", `NATS gave no epoch: ${asMargayError(error).message}`, { cause: error });
    }
  }

  async flush(timeoutMs: number): Promise<void> {
    if (this.#state !== "connected") throw new MargayError("bus_unavailable");
    await this.#within(timeoutMs, this.#connection.flush());
  }

  async close(timeoutMs: number): Promise<void> {
    if (this.#connection.isClosed()) return;
    try {
      if (this.#state === "connected") await this.#within(timeoutMs, this.#connection.flush());
    } catch {
      // What could not be sent in time is lost, as on any outage.
    }
    await this.#connection.close();
    this.#become("closed", "closed");
  }

  async #watch(): Promise<void> {
    for await (const status of this.#connection.status()) this.#onStatus(status);
  }

  #onStatus(status: Status): void {
    if (status.type === Events.Disconnect) {
      this.#become("disconnected", `lost ${withoutPassword(String(status.data))}`);
    } else if (status.type === Events.Reconnect) {
      this.#become("connected", `reconnected to ${withoutPassword(String(status.data))}`);
    } else if (status.type === Events.Error && status.permissionContext !== undefined) {
      const { operation, subject } = status.permissionContext;
      this.#listener?.onDenied(operation === "publish" ? "publish" : "subscribe", subject);
    }
  }

  #become(state: BusState, detail: string): void {
    if (this.#state === state || this.#state === "closed") return;
    this.#state = state;
    this.#listener?.onState(state, detail);
  }

  async #within(ms: number, work: Promise<void>): Promise<void> {
    let cancel = () => {};
    const deadline = new Promise<never>((_, reject) => {
      const timer = this.#timers.after(ms, () =>
        reject(new MargayError("timeout", `The NATS server did not answer in ${ms} ms.`)),
      );
      cancel = () => timer.cancel();
    });
    try {
      await Promise.race([work, deadline]);
    } catch (error) {
      throw error instanceof MargayError ? error : new MargayError("bus_unavailable", undefined, { cause: error });
    } finally {
      cancel();
    }
  }
}

function isNats(error: unknown, code: NatsErrorCode): boolean {
  return error instanceof Error && (error as NatsError).code === code;
}

/** A URL fit for logs. */
function withoutPassword(url: string): string {
  return url.replace(/\/\/[^@/]*@/, "//");
}
