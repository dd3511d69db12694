import { MargayError } from "../errors.ts";
import { inboxPrefix } from "../subjects.ts";
import { type Bus, type BusObserver, type BusRandom, type BusState, type BusTimers, silentObserver } from "./bus.ts";
import type { LinkJournal } from "./journal.ts";
import type { Delivery, Link, LinkListener } from "./link.ts";
import { MemoryJournal } from "./memory-journal.ts";
import { subjectMatches } from "./subject-match.ts";
import { TypedBus } from "./typed-bus.ts";

interface Listener {
  readonly link: MemoryLink;
  readonly subject: readonly string[];
  readonly queue: string | null;
  readonly onDelivery: (delivery: Delivery) => void;
}

/**
 * A message server inside one process. Owns the listeners of all its links.
 *
 * 1 nothing is delivered during the call that sends it; messages of one sender keep their order
 * 2 messages pass as bytes, so no two parties share an object
 * 3 of one queue group each message reaches one member, in turn
 */
export class MemoryNetwork {
  readonly #timers: BusTimers;
  readonly #random: BusRandom;
  readonly #links = new Map<Bus, MemoryLink>();
  readonly #listeners = new Set<Listener>();
  readonly #turns = new Map<string, number>();
  readonly journal = new MemoryJournal();
  #epoch = 0;

  constructor(timers: BusTimers, random: BusRandom) {
    this.#timers = timers;
    this.#random = random;
  }

  /** A connected bus. */
  connect(role = "test", observer: BusObserver = silentObserver): Bus {
    const link = new MemoryLink(this, inboxPrefix(role));
    const bus = new TypedBus(link, this.#timers, this.#random, observer);
    this.#links.set(bus, link);
    return bus;
  }

  /** Cuts one bus off, as a broken connection does. */
  disconnect(bus: Bus): void {
    this.#links.get(bus)?.become("disconnected", "cut off");
  }

  reconnect(bus: Bus): void {
    this.#links.get(bus)?.become("connected", "back");
  }

  /** Cuts everybody off, as the end of the server does. */
  stop(): void {
    for (const bus of this.#links.keys()) this.disconnect(bus);
  }

  start(): void {
    for (const bus of this.#links.keys()) this.reconnect(bus);
  }

  /** For links: a subscription. */
  add(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** For links: who gets a message, now. */
  route(sender: MemoryLink, subject: string, data: Uint8Array, reply: string | null): void {
    const tokens = subject.split(".");
    const groups = new Map<string, Listener[]>();
    const receivers: Listener[] = [];
    for (const listener of this.#listeners) {
      if (listener.link.state !== "connected" || !subjectMatches(listener.subject, tokens)) continue;
      if (listener.queue === null) receivers.push(listener);
      else {
        const group = `${listener.queue} ${listener.subject.join(".")}`;
        groups.set(group, [...(groups.get(group) ?? []), listener]);
      }
    }
    for (const [group, members] of groups) {
      const turn = this.#turns.get(group) ?? 0;
      this.#turns.set(group, turn + 1);
      receivers.push(members[turn % members.length]!);
    }
    for (const receiver of receivers) this.#deliver(receiver, { subject, data, reply, noResponders: false });
    if (receivers.length === 0 && reply !== null) this.#tellNobody(sender, reply);
  }

  nextEpoch(): number {
    return ++this.#epoch;
  }

  #tellNobody(sender: MemoryLink, reply: string): void {
    const tokens = reply.split(".");
    for (const listener of this.#listeners) {
      if (listener.link !== sender || !subjectMatches(listener.subject, tokens)) continue;
      this.#deliver(listener, { subject: reply, data: new Uint8Array(), reply: null, noResponders: true });
    }
  }

  #deliver(listener: Listener, delivery: Delivery): void {
    queueMicrotask(() => {
      if (this.#listeners.has(listener) && listener.link.state === "connected") listener.onDelivery(delivery);
    });
  }
}

class MemoryLink implements Link {
  readonly inbox: string;
  readonly #network: MemoryNetwork;
  #state: BusState = "connected";
  #listener: LinkListener | null = null;

  constructor(network: MemoryNetwork, inbox: string) {
    this.#network = network;
    this.inbox = inbox;
  }

  get state(): BusState {
    return this.#state;
  }

  attach(listener: LinkListener): void {
    this.#listener = listener;
  }

  become(state: BusState, detail: string): void {
    if (this.#state === state || this.#state === "closed") return;
    this.#state = state;
    this.#listener?.onState(state, detail);
  }

  send(subject: string, data: Uint8Array, reply: string | null): boolean {
    if (this.#state !== "connected") return false;
    this.#network.route(this, subject, data, reply);
    return true;
  }

  listen(subject: string, queue: string | null, onDelivery: (delivery: Delivery) => void) {
    const remove = this.#network.add({ link: this, subject: subject.split("."), queue, onDelivery });
    return { unsubscribe: remove };
  }

  journal(): LinkJournal {
    const ask = async <T>(answer: (journal: MemoryJournal) => T): Promise<T> => {
      if (this.#state !== "connected") throw new MargayError("bus_unavailable");
      return answer(this.#network.journal);
    };
    return {
      append: (subject, after, data) => {
        this.send(subject, data, null);
        return ask((journal) => journal.append(subject, after, data));
      },
      add: (subject, id, data) => ask((journal) => journal.add(subject, id, data)),
      read: (subject, after, most) => ask((journal) => journal.read(subject, after, most)),
      last: (subject) => ask((journal) => journal.last(subject)),
      purge: (subject) => ask((journal) => journal.purge(subject)),
      list: (pattern) => ask((journal) => journal.list(pattern)),
    };
  }

  async nextEpoch(): Promise<number> {
    if (this.#state !== "connected") throw new MargayError("bus_unavailable");
    return this.#network.nextEpoch();
  }

  async flush(): Promise<void> {
    if (this.#state !== "connected") throw new MargayError("bus_unavailable");
  }

  async close(): Promise<void> {
    this.become("closed", "closed");
  }
}
