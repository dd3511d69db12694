import {
  connect,
  DebugEvents,
  Events,
  type NatsConnection,
  type NatsError,
  ErrorCode as NatsErrorCode,
  type Subscription as NatsSubscription,
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
/**
 * One attempt to connect. After one that was not answered in time the next may take twice as long: a server that hangs
 * accepts connections all the same, and the library keeps those that it has given up. Once it goes on it answers the last.
 */
const DIAL_MS = 2_000;
const LONGEST_DIAL_MS = 30_000;
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
  const connection = await firstConnection(options);
  return new TypedBus(new NatsLink(connection, options), options.timers, options.random, options.observer);
}

async function firstConnection(options: NatsOptions): Promise<NatsConnection> {
  const { timers, user } = options;
  const shown = withoutPassword(options.url);
  let outOfTime = false;
  const deadline = timers.after(options.connectTimeoutMs, () => {
    outOfTime = true;
  });
  try {
    for (;;) {
      try {
        return await dial(options, Math.min(DIAL_MS, options.connectTimeoutMs));
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

/**
 * One connection, which ends when it is lost: the library's own reconnecting goes through one parser for all of a client's
 * sockets, and a socket that opens after its time was over is one too many; two that are read at once damage each other's
 * messages.
 */
function dial(options: NatsOptions, timeoutMs: number): Promise<NatsConnection> {
  const { user, password } = options;
  return connect({
    servers: options.url,
    name: options.name,
    inboxPrefix: inboxPrefix(options.role),
    timeout: timeoutMs,
    pingInterval: PING_MS,
    maxPingOut: MOST_PINGS_OUT,
    reconnect: false,
    ignoreClusterUpdates: true,
    // Names are found as every other program of the machine finds them: search domains and /etc/hosts included.
    resolve: false,
    ...tlsOf(options),
    ...(user === null ? {} : { user }),
    ...(password === null ? {} : { pass: password }),
  });
}

/** With `tls` set the library refuses a server that has none. */
function tlsOf({ tls, url }: NatsOptions): object {
  if (tls === null) return url.startsWith("tls://") ? { tls: {} } : {};
  const { caFile, certificate } = tls;
  return { tls: { ...(caFile === null ? {} : { caFile }), ...(certificate ?? {}) } };
}

interface Listening {
  readonly subject: string;
  readonly queue: string | null;
  readonly onDelivery: (delivery: Delivery) => void;
  /** Of the connection there is. */
  subscription: NatsSubscription | null;
}

/**
 * The door to the `nats` package. Owns the connection to the server and what is listened to, over all connections.
 *
 *   connected <-> disconnected -> closed
 *
 * N1 one connection at a time: what comes by another one is not heard
 * N2 whoever listens does so on every connection, from before the bus is said to be connected
 */
class NatsLink implements Link {
  readonly inbox: string;
  readonly #options: NatsOptions;
  readonly #stamp: string;
  readonly #listening = new Set<Listening>();
  #connection: NatsConnection;
  #journals = 0;
  #state: BusState = "connected";
  #listener: LinkListener | null = null;

  constructor(connection: NatsConnection, options: NatsOptions) {
    this.#options = options;
    this.#stamp = options.random.hex(8);
    this.#connection = connection;
    this.inbox = inboxPrefix(options.role);
    this.#watch(connection);
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
    const listening: Listening = { subject, queue, onDelivery, subscription: null };
    this.#listening.add(listening);
    if (this.#state === "connected") this.#subscribe(listening);
    return {
      unsubscribe: () => {
        this.#listening.delete(listening);
        if (!this.#connection.isClosed()) listening.subscription?.unsubscribe();
      },
    };
  }

  journal(limits: JournalLimits): LinkJournal {
    const connected = () => this.#state === "connected";
    return new NatsJournal(() => this.#connection, limits, `${this.#stamp}-${this.#journals++}`, connected);
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
    if (this.#state === "closed") return;
    try {
      if (this.#state === "connected") await this.#within(timeoutMs, this.#connection.flush());
    } catch {
      // What could not be sent in time is lost, as on any outage.
    }
    this.#become("closed", "closed");
    await this.#connection.close();
  }

  #subscribe(listening: Listening): void {
    const connection = this.#connection;
    // A connection that was lost and not yet told: the next one subscribes.
    if (connection.isClosed()) return;
    const { subject, queue, onDelivery } = listening;
    listening.subscription = connection.subscribe(subject, {
      ...(queue === null ? {} : { queue }),
      callback: (error, message) => {
        // A denial comes here and to the status iterator; it is told once, there.
        if (error !== null || connection !== this.#connection) return;
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
  }

  #watch(connection: NatsConnection): void {
    void connection.closed().then(() => this.#onLost(connection));
    void (async () => {
      for await (const status of connection.status()) this.#onStatus(connection, status);
    })();
  }

  #onStatus(connection: NatsConnection, status: Status): void {
    if (status.type === DebugEvents.StaleConnection) {
      // The library would first send what is on its way, to a server that does not answer.
      this.#onLost(connection);
    } else if (status.type === Events.Error && status.permissionContext !== undefined) {
      const { operation, subject } = status.permissionContext;
      this.#listener?.onDenied(operation === "publish" ? "publish" : "subscribe", subject);
    }
  }

  #onLost(connection: NatsConnection): void {
    if (connection !== this.#connection || this.#state !== "connected") return;
    this.#become("disconnected", `lost ${withoutPassword(this.#options.url)}`);
    void this.#reconnect(connection);
  }

  /** Until there is a connection again, or nobody wants one. */
  async #reconnect(lost: NatsConnection): Promise<void> {
    const { random, timers, url } = this.#options;
    void lost.close().catch(() => {});
    let dialMs = DIAL_MS;
    while (this.#state === "disconnected") {
      await timers.sleep(RECONNECT_MS + random.uniform() * RECONNECT_JITTER_MS);
      if (this.#state !== "disconnected") return;
      const connection = await dial(this.#options, dialMs).catch((error: unknown) => {
        dialMs = isNats(error, NatsErrorCode.Timeout) ? Math.min(2 * dialMs, LONGEST_DIAL_MS) : DIAL_MS;
        return null;
      });
      if (connection === null) continue;
      if (this.#state !== "disconnected") return void connection.close();
      this.#connection = connection;
      for (const listening of this.#listening) this.#subscribe(listening);
      this.#become("connected", `reconnected to ${withoutPassword(url)}`);
      this.#watch(connection);
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
      const timer = this.#options.timers.after(ms, () =>
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
