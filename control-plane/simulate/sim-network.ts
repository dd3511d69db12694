import type { Bus, BusObserver, BusState } from "#protocol/bus/bus.ts";
import type { LinkJournal } from "#protocol/bus/journal.ts";
import type { Delivery, Link, LinkListener } from "#protocol/bus/link.ts";
import { MemoryJournal } from "#protocol/bus/memory-journal.ts";
import { subjectMatches } from "#protocol/bus/subject-match.ts";
import { TypedBus } from "#protocol/bus/typed-bus.ts";
import { MargayError } from "#protocol/errors.ts";
import { inboxPrefix } from "#protocol/subjects.ts";
import type { Random } from "#service/clock.ts";
import { describeMessage } from "./message-note.ts";
import { between, chance, oneOf } from "./seeded-random.ts";
import type { SimThread } from "./sim-thread.ts";
import type { VirtualTime } from "./virtual-time.ts";

/** How messages travel. */
export interface NetworkWeather {
  /** One way between a process and the server, milliseconds: the least, the usual most, and now and then ten times that. */
  readonly leastMs: number;
  readonly mostMs: number;
  /** Shares of single messages. Core NATS does none of these while connections last; zero for what it may do. */
  readonly lost: number;
  readonly doubled: number;
  readonly overtaken: number;
}

/** Notes what happens to messages. */
export type NetworkNote = (what: () => string) => void;

interface Subscriber {
  readonly link: SimLink;
  readonly subject: readonly string[];
  readonly queue: string | null;
  readonly onDelivery: (delivery: Delivery) => void;
  /** The connection over which the server heard of it; 0: not yet. */
  connection: number;
}

const SLOW_SHARE = 0.01;

/**
 * A NATS server and the connections to it. Owns who is subscribed, and every message on its way.
 *
 * As core NATS does:
 * 1 what one connection carries keeps its order, in both directions; different connections know nothing of each other
 * 2 a message is held by nobody: it reaches whoever is subscribed when the server has it, and of one queue group one
 * 3 what is on a connection when it breaks is lost, either way. A process may learn of that later than it happens, and
 *   what it sends until then is lost; the server may learn of it later as well, and what it hands over until then is lost
 * 4 of messages sent before a break and after it the later ones may arrive first
 * `NetworkWeather` can add what NATS does not do: single messages lost, doubled, overtaken.
 */
export class SimNetwork {
  readonly #time: VirtualTime;
  readonly #random: Random;
  readonly #weather: NetworkWeather;
  readonly #note: NetworkNote;
  readonly #subscribers = new Set<Subscriber>();
  readonly #bySubject = new Map<string, Subscriber[]>();
  readonly journal = new MemoryJournal();
  #epoch = 0;

  constructor(time: VirtualTime, random: Random, weather: NetworkWeather, note: NetworkNote) {
    this.#time = time;
    this.#random = random;
    this.#weather = weather;
    this.#note = note;
  }

  /** The bus of a process. `cut` and the rest is done to its link. */
  connect(
    name: string,
    role: string,
    thread: SimThread,
    random: Random,
    observer: BusObserver,
  ): { readonly bus: Bus; readonly link: SimLink } {
    const link = new SimLink(this, name, inboxPrefix(role), thread);
    return { bus: new TypedBus(link, thread, random, observer), link };
  }

  /** For links: a message leaves a process. */
  send(link: SimLink, subject: string, data: Uint8Array, reply: string | null): void {
    const { lost, doubled, overtaken } = this.#weather;
    if (chance(this.#random, lost)) {
      this.#note(() => `lost on its way from ${link.name}: ${describeMessage(subject, data)}`);
      return;
    }
    const copies = chance(this.#random, doubled) ? 2 : 1;
    for (let copy = 0; copy < copies; copy++) {
      const free = chance(this.#random, overtaken) || copy > 0;
      this.up(link, free, () => this.#route(link, subject, data, reply));
    }
  }

  /** For links: `arrive` happens at the server, after everything the connection carries already unless `free`. */
  up(link: SimLink, free: boolean, arrive: () => void): void {
    const { connection } = link;
    const dueMs = this.#time.nowMs + this.#delayMs();
    if (!free) link.upMs = Math.max(link.upMs, dueMs);
    this.#time.at(free ? dueMs : link.upMs, () => {
      if (link.connection === connection && link.open) arrive();
      else this.#note(() => `lost with the connection of ${link.name}`);
    });
  }

  /** For links: `arrive` happens in the process, if the connection lasts until then. */
  down(link: SimLink, free: boolean, arrive: () => void): void {
    const { connection } = link;
    const dueMs = this.#time.nowMs + this.#delayMs();
    if (!free) link.downMs = Math.max(link.downMs, dueMs);
    this.#time.at(free ? dueMs : link.downMs, () => {
      if (link.connection === connection && link.open) link.thread.post(arrive);
      else this.#note(() => `lost with the connection of ${link.name}`);
    });
  }

  subscribe(subscriber: Subscriber): () => void {
    this.#subscribers.add(subscriber);
    this.#bySubject.clear();
    this.up(subscriber.link, false, () => {
      subscriber.connection = subscriber.link.connection;
    });
    return () => {
      this.#subscribers.delete(subscriber);
      this.#bySubject.clear();
    };
  }

  /** A link has a new connection: the server hears of its subscriptions again. */
  resubscribe(link: SimLink): void {
    for (const subscriber of this.#subscribers) {
      if (subscriber.link !== link) continue;
      this.up(link, false, () => {
        subscriber.connection = link.connection;
      });
    }
  }

  /** The process is gone, and its connection with it. */
  forget(link: SimLink): void {
    for (const subscriber of this.#subscribers) {
      if (subscriber.link === link) this.#subscribers.delete(subscriber);
    }
    this.#bySubject.clear();
  }

  nextEpoch(): number {
    return ++this.#epoch;
  }

  #delayMs(): number {
    const { leastMs, mostMs } = this.#weather;
    const ms = between(this.#random, leastMs, mostMs);
    return chance(this.#random, SLOW_SHARE) ? ms * 10 : ms;
  }

  #route(sender: SimLink, subject: string, data: Uint8Array, reply: string | null): void {
    const groups = new Map<string, Subscriber[]>();
    const receivers: Subscriber[] = [];
    for (const subscriber of this.#matching(subject)) {
      const { link, connection, queue } = subscriber;
      if (connection === 0 || (connection !== link.connection && !link.ghost) || (!link.open && !link.ghost)) continue;
      if (queue === null) receivers.push(subscriber);
      else {
        const group = `${queue} ${subscriber.subject.join(".")}`;
        groups.set(group, [...(groups.get(group) ?? []), subscriber]);
      }
    }
    for (const members of groups.values()) receivers.push(oneOf(this.#random, members));
    for (const receiver of receivers) this.#deliver(receiver, { subject, data, reply, noResponders: false });
    if (receivers.length === 0 && reply !== null) this.#tellNobody(sender, reply);
  }

  #tellNobody(sender: SimLink, subject: string): void {
    for (const subscriber of this.#matching(subject)) {
      if (subscriber.link !== sender) continue;
      this.#deliver(subscriber, { subject, data: new Uint8Array(), reply: null, noResponders: true });
    }
  }

  #deliver(subscriber: Subscriber, delivery: Delivery): void {
    const free = chance(this.#random, this.#weather.overtaken);
    this.down(subscriber.link, free, () => {
      if (!this.#subscribers.has(subscriber) || subscriber.link.state !== "connected") return;
      this.#note(() => `${subscriber.link.name} hears ${describeMessage(delivery.subject, delivery.data)}`);
      subscriber.onDelivery(delivery);
    });
  }

  #matching(subject: string): readonly Subscriber[] {
    let found = this.#bySubject.get(subject);
    if (found === undefined) {
      const tokens = subject.split(".");
      found = [...this.#subscribers].filter((subscriber) => subjectMatches(subscriber.subject, tokens));
      // Reply subjects are used once.
      if (!subject.startsWith("_INBOX.")) this.#bySubject.set(subject, found);
    }
    return found;
  }
}

/**
 * One process's side of its connection.
 *
 *   connected (-> broken, not yet known) -> disconnected -> connected over a new one ... -> closed
 */
export class SimLink implements Link {
  readonly name: string;
  readonly inbox: string;
  readonly thread: SimThread;
  /** Number of the connection; what belongs to another one is lost. */
  connection = 1;
  /** Bytes pass. */
  open = true;
  /** The server has not noticed that the connection is gone. */
  ghost = false;
  /** When what was sent last arrives, either way. */
  upMs = 0;
  downMs = 0;
  readonly #network: SimNetwork;
  #state: BusState = "connected";
  #listener: LinkListener | null = null;

  constructor(network: SimNetwork, name: string, inbox: string, thread: SimThread) {
    this.#network = network;
    this.name = name;
    this.inbox = inbox;
    this.thread = thread;
  }

  get state(): BusState {
    return this.#state;
  }

  attach(listener: LinkListener): void {
    this.#listener = listener;
  }

  /** The connection breaks. `ghost`: the server does not notice yet. */
  break(ghost: boolean): void {
    this.open = false;
    this.ghost = ghost;
  }

  /** The server notices. */
  noticed(): void {
    this.ghost = false;
  }

  /** The process notices. */
  lose(): void {
    this.thread.post(() => this.#become("disconnected", "the connection broke"));
  }

  /** A new connection. */
  restore(): void {
    this.thread.post(() => {
      if (this.open || this.#state === "closed") return;
      // A client that connects anew has noticed that its old connection is gone.
      this.#become("disconnected", "the connection broke");
      this.connection++;
      this.open = true;
      this.ghost = false;
      this.#network.resubscribe(this);
      this.#become("connected", "back");
    });
  }

  send(subject: string, data: Uint8Array, reply: string | null): boolean {
    if (this.#state !== "connected") return false;
    this.#network.send(this, subject, data, reply);
    return true;
  }

  listen(subject: string, queue: string | null, onDelivery: (delivery: Delivery) => void) {
    const tokens = subject.split(".");
    return {
      unsubscribe: this.#network.subscribe({ link: this, subject: tokens, queue, onDelivery, connection: 0 }),
    };
  }

  journal(): LinkJournal {
    const ask = <T>(answer: (journal: MemoryJournal) => T): Promise<T> =>
      this.#roundTrip(5_000, () => answer(this.#network.journal));
    return {
      append: (subject, after, data) => {
        this.send(subject, data, null);
        return ask((journal) => journal.append(subject, after, data));
      },
      add: (subject, id, data) => ask((journal) => journal.add(subject, id, data)),
      read: (subject, after) => ask((journal) => journal.read(subject, after)),
      last: (subject) => ask((journal) => journal.last(subject)),
      purge: (subject) => ask((journal) => journal.purge(subject)),
      list: (pattern) => ask((journal) => journal.list(pattern)),
    };
  }

  nextEpoch(): Promise<number> {
    return this.#roundTrip(5_000, () => this.#network.nextEpoch());
  }

  async flush(timeoutMs: number): Promise<void> {
    await this.#roundTrip(timeoutMs, () => 0);
  }

  async close(): Promise<void> {
    this.#become("closed", "closed");
    this.#network.forget(this);
  }

  #roundTrip<T>(timeoutMs: number, atServer: () => T): Promise<T> {
    if (this.#state !== "connected") return Promise.reject(new MargayError("bus_unavailable"));
    return new Promise((resolve, reject) => {
      const timer = this.thread.after(timeoutMs, () => reject(new MargayError("bus_unavailable")));
      this.#network.up(this, false, () => {
        const answer = atServer();
        this.#network.down(this, false, () => {
          timer.cancel();
          resolve(answer);
        });
      });
    });
  }

  #become(state: BusState, detail: string): void {
    if (this.#state === state || this.#state === "closed") return;
    this.#state = state;
    this.#listener?.onState(state, detail);
  }
}
