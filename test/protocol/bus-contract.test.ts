import { afterEach, describe, expect, test } from "vitest";
import { z } from "zod";
import type { Bus, BusObserver, BusState } from "#protocol/bus/bus.ts";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import { MAX_MESSAGE_BYTES } from "#protocol/bus/wire.ts";
import { MargayError } from "#protocol/errors.ts";
import type { GatewayId, RankId } from "#protocol/ids.ts";
import { subjects } from "#protocol/subjects.ts";
import { Refused } from "#protocol/worker.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { NatsServer } from "../support/nats-server.ts";

/** Two parties that may talk as in the product: a gateway asks and listens, a decode rank answers and publishes. */
interface Setup extends AsyncDisposable {
  gateway(observer?: BusObserver): Promise<Bus>;
  worker(observer?: BusObserver): Promise<Bus>;
  outage(): Promise<void>;
  recover(): Promise<void>;
}

async function memorySetup(): Promise<Setup> {
  const network = new MemoryNetwork(systemClock, systemRandom);
  return {
    gateway: async (observer) => network.connect("control-plane", observer),
    worker: async (observer) => network.connect("decode", observer),
    outage: async () => network.stop(),
    recover: async () => network.start(),
    async [Symbol.asyncDispose]() {},
  };
}

async function natsSetup(): Promise<Setup> {
  const server = await NatsServer.start();
  const buses: Bus[] = [];
  const open = async (role: "control-plane" | "decode", observer?: BusObserver) => {
    const bus = await server.connect(role, observer);
    buses.push(bus);
    return bus;
  };
  return {
    gateway: (observer) => open("control-plane", observer),
    worker: (observer) => open("decode", observer),
    outage: () => server.down(),
    recover: () => server.up(),
    async [Symbol.asyncDispose]() {
      for (const bus of buses) await bus.close(1000);
      await server[Symbol.asyncDispose]();
    },
  };
}

const rank = "w1-r0" as RankId;
const ask = subjects.reserve(rank);
const stream = subjects.tokens("g1" as GatewayId);

const Question = z.strictObject({ n: z.int() });
const Answer = z.strictObject({ kind: z.literal("answer"), doubled: z.int() });
const Reply = z.discriminatedUnion("kind", [Answer, Refused]);
const Item = z.strictObject({ n: z.int(), tokens: z.instanceof(Int32Array) });

const item = (n: number) => ({ n, tokens: Int32Array.of(n) });
const double = ({ n }: { n: number }) => ({ kind: "answer" as const, doubled: 2 * n });

function recorder() {
  const events: string[] = [];
  const observer: BusObserver = {
    onState: (state) => void events.push(`state ${state}`),
    onRejected: (subject, detail) => void events.push(`rejected ${subject} ${detail}`),
    onDropped: (subject) => void events.push(`dropped ${subject}`),
    onDenied: (operation, subject) => void events.push(`denied ${operation} ${subject}`),
    onHandlerError: (subject, error) => void events.push(`handler ${subject} ${error}`),
  };
  return { events, observer };
}

/** Waits until `check` holds; the test's own timeout ends a wait in vain. */
async function until(check: () => boolean): Promise<void> {
  while (!check()) await systemClock.sleep(2);
}

const stateIs = (bus: Bus, state: BusState) => until(() => bus.state === state);

async function failure(work: Promise<unknown>): Promise<MargayError> {
  const error = await work.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(MargayError);
  return error as MargayError;
}

describe.each([
  ["memory", memorySetup],
  ["nats", natsSetup],
])("%s bus", (_, open) => {
  let setup: Setup | null = null;
  async function pair(workerObserver?: BusObserver, gatewayObserver?: BusObserver) {
    setup = await open();
    return { gateway: await setup.gateway(gatewayObserver), worker: await setup.worker(workerObserver), setup };
  }
  afterEach(async () => {
    await setup?.[Symbol.asyncDispose]();
    setup = null;
  });

  test("a request is answered, also by an asynchronous handler", async () => {
    const { gateway, worker } = await pair();
    worker.respond(ask, Question, Reply, async (question) => {
      await systemClock.sleep(1);
      return double(question);
    });
    await worker.flush(1000);
    expect(await gateway.request(ask, Question, { n: 21 }, Reply, 2000)).toEqual({ kind: "answer", doubled: 42 });
  });

  test("answers find their own questions", async () => {
    const { gateway, worker } = await pair();
    worker.respond(ask, Question, Reply, async (question) => {
      await systemClock.sleep(20 - question.n);
      return double(question);
    });
    await worker.flush(1000);
    const all = Array.from({ length: 20 }, (_, n) => gateway.request(ask, Question, { n }, Answer, 2000));
    expect((await Promise.all(all)).map(({ doubled }) => doubled)).toEqual(Array.from({ length: 20 }, (_, n) => 2 * n));
  });

  test("a request nobody listens to fails at once as worker_lost", async () => {
    const { gateway } = await pair();
    const startMs = systemClock.monotonic();
    expect((await failure(gateway.request(ask, Question, { n: 1 }, Reply, 30_000))).code).toBe("worker_lost");
    expect(systemClock.monotonic() - startMs).toBeLessThan(10_000);
  });

  test("an answer that does not come is a timeout, and one that comes later is ignored", async () => {
    const { gateway, worker } = await pair();
    let release = () => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    worker.respond(ask, Question, Reply, async (question) => {
      if (question.n === 1) await held;
      return double(question);
    });
    await worker.flush(1000);
    const error = await failure(gateway.request(ask, Question, { n: 1 }, Reply, 50));
    expect(error.code).toBe("timeout");
    expect(error.message).toContain("50 ms");
    release();
    expect(await gateway.request(ask, Question, { n: 2 }, Reply, 2000)).toEqual({ kind: "answer", doubled: 4 });
  });

  test("a reply that breaks the schema is internal", async () => {
    const { gateway, worker } = await pair();
    worker.respond(ask, Question, z.strictObject({ other: z.int() }), () => ({ other: 1 }));
    await worker.flush(1000);
    expect((await failure(gateway.request(ask, Question, { n: 1 }, Reply, 2000))).code).toBe("internal");
  });

  test("a handler that answers against its own schema is told to its observer and refused as internal", async () => {
    const { events, observer } = recorder();
    const { gateway, worker } = await pair(observer);
    worker.respond(ask, Question, Answer, () => ({ kind: "answer" as const, doubled: 0.5 }));
    await worker.flush(1000);
    expect(await gateway.request(ask, Question, { n: 1 }, Reply, 2000)).toMatchObject({ code: "internal" });
    expect(events.join()).toContain(`handler ${ask}`);
    expect(events.join()).toContain("doubled");
  });

  test("a message that is not of its schema is dropped and counted; as a request it is refused, and may be put elsewhere", async () => {
    const { events, observer } = recorder();
    const { gateway, worker } = await pair(observer);
    const seen: number[] = [];
    worker.respond(ask, Question, Reply, double);
    worker.subscribe(subjects.acks(rank), Question, ({ n }) => void seen.push(n));
    await worker.flush(1000);
    gateway.publish(subjects.acks(rank), z.strictObject({ n: z.string() }), { n: "secret" });
    gateway.publish(subjects.acks(rank), z.strictObject({ n: z.int(), more: z.int() }), { n: 1, more: 1 });
    gateway.publish(subjects.acks(rank), Question, { n: 7 });
    const reply = await gateway.request(ask, z.strictObject({ m: z.int() }), { m: 1 }, Reply, 2000);
    expect(reply).toMatchObject({ kind: "refused", code: "incompatible" });
    await until(() => seen.length > 0);
    expect(seen).toEqual([7]);
    const told = events.filter((event) => event.startsWith("rejected"));
    expect(told).toHaveLength(3);
    expect(told.join()).not.toContain("secret");
  });

  test("a sender's own mistake throws at the sender", async () => {
    const { gateway } = await pair();
    expect(() => gateway.publish(subjects.acks(rank), Question, { n: 0.5 })).toThrow("n: ");
    expect((await failure(gateway.request(ask, Question, { n: 0.5 }, Reply, 100))).code).toBe("internal");
    const Big = z.strictObject({ bytes: z.instanceof(Uint8Array) });
    const big = { bytes: new Uint8Array(MAX_MESSAGE_BYTES) };
    expect(() => gateway.publish(subjects.acks(rank), Big, big)).toThrow("exceeds the bus limit");
    expect((await failure(gateway.request(ask, Big, big, Reply, 100))).code).toBe("payload_too_large");
  });

  test("a handler's MargayError becomes a Refused with its code; other errors tell nothing", async () => {
    const { events, observer } = recorder();
    const { gateway, worker } = await pair(observer);
    worker.respond(ask, Question, Reply, ({ n }) => {
      if (n === 1) throw new MargayError("busy", "no slot is free", { retryAfterMs: 250 });
      throw new Error("the prompt was: hello");
    });
    await worker.flush(1000);
    expect(await gateway.request(ask, Question, { n: 1 }, Reply, 2000)).toEqual({
      kind: "refused",
      code: "busy",
      detail: "no slot is free",
      retryAfterMs: 250,
    });
    const other = await gateway.request(ask, Question, { n: 2 }, Reply, 2000);
    expect(other).toMatchObject({ kind: "refused", code: "internal" });
    expect(JSON.stringify(other)).not.toContain("hello");
    expect(events.filter((event) => event.startsWith("handler"))).toHaveLength(1);
  });

  test("where the answer's schema lists no Refused, a refusal rejects with its code", async () => {
    const { gateway, worker } = await pair();
    worker.respond(ask, Question, Answer, () => {
      throw new MargayError("draining", "leaving", { retryAfterMs: 5 });
    });
    await worker.flush(1000);
    const error = await failure(gateway.request(ask, Question, { n: 1 }, Answer, 2000));
    expect(error).toMatchObject({ code: "draining", message: "leaving", retryAfterMs: 5 });
  });

  test("a subscriber that throws gets the next message all the same", async () => {
    const { events, observer } = recorder();
    const { gateway, worker } = await pair(undefined, observer);
    const seen: number[] = [];
    gateway.subscribe(stream, Item, ({ n }) => {
      seen.push(n);
      if (n === 0) throw new Error("oops");
    });
    await gateway.flush(1000);
    worker.publish(stream, Item, item(0));
    worker.publish(stream, Item, item(1));
    await until(() => seen.length === 2);
    expect(events).toEqual([`handler ${stream} Error: oops`]);
  });

  test("messages arrive in order, through wildcards, with arrays of their own", async () => {
    const { gateway, worker } = await pair();
    const seen: z.output<typeof Item>[] = [];
    gateway.subscribe(subjects.tokens("*" as GatewayId), Item, (message) => void seen.push(message));
    await gateway.flush(1000);
    const sent = item(0);
    for (let n = 0; n < 500; n++) {
      sent.n = n;
      sent.tokens[0] = n;
      worker.publish(stream, Item, sent);
    }
    await until(() => seen.length === 500);
    expect(seen.map(({ n }) => n)).toEqual(Array.from({ length: 500 }, (_, n) => n));
    expect(seen.map(({ tokens }) => tokens[0])).toEqual(Array.from({ length: 500 }, (_, n) => n));
  });

  test("of a queue group exactly one answers each request, and others take over when it leaves", async () => {
    const { gateway, worker, setup } = await pair();
    const second = await setup.worker();
    const served = { first: 0, second: 0 };
    const subscription = worker.respond(
      ask,
      Question,
      Reply,
      (question) => {
        served.first++;
        return double(question);
      },
      "group",
    );
    second.respond(
      ask,
      Question,
      Reply,
      (question) => {
        served.second++;
        return double(question);
      },
      "group",
    );
    await Promise.all([worker.flush(1000), second.flush(1000)]);
    for (let n = 0; n < 60; n++) await gateway.request(ask, Question, { n }, Reply, 2000);
    expect(served.first + served.second).toBe(60);
    expect(Math.min(served.first, served.second)).toBeGreaterThan(0);
    subscription.unsubscribe();
    await worker.flush(1000);
    const before = served.first;
    for (let n = 0; n < 20; n++) await gateway.request(ask, Question, { n }, Reply, 2000);
    expect(served.first).toBe(before);
  });

  test("after unsubscribe nothing is delivered any more", async () => {
    const { gateway, worker } = await pair();
    const seen: number[] = [];
    const kept: number[] = [];
    const subscription = gateway.subscribe(stream, Item, ({ n }) => void seen.push(n));
    gateway.subscribe(stream, Item, ({ n }) => void kept.push(n));
    await gateway.flush(1000);
    worker.publish(stream, Item, item(1));
    await until(() => kept.length === 1);
    subscription.unsubscribe();
    subscription.unsubscribe();
    await gateway.flush(1000);
    worker.publish(stream, Item, item(2));
    await until(() => kept.length === 2);
    expect(seen).toEqual([1]);
  });

  test("an outage fails waiting and new requests, drops what is published, and ends", async () => {
    const { events, observer } = recorder();
    const { gateway, worker, setup } = await pair(undefined, observer);
    const seen: number[] = [];
    const states: BusState[] = [];
    gateway.onState((state) => void states.push(state));
    worker.respond(ask, Question, Reply, ({ n }) => (n === 0 ? new Promise(() => {}) : double({ n })));
    worker.subscribe(subjects.acks(rank), Question, ({ n }) => void seen.push(n));
    await worker.flush(1000);
    const waiting = failure(gateway.request(ask, Question, { n: 0 }, Reply, 30_000));
    expect(await gateway.request(ask, Question, { n: 1 }, Reply, 2000)).toMatchObject({ doubled: 2 });

    await setup.outage();
    expect((await waiting).code).toBe("bus_unavailable");
    await Promise.all([stateIs(gateway, "disconnected"), stateIs(worker, "disconnected")]);
    expect((await failure(gateway.request(ask, Question, { n: 2 }, Reply, 30_000))).code).toBe("bus_unavailable");
    expect((await failure(gateway.flush(1000))).code).toBe("bus_unavailable");
    gateway.publish(subjects.acks(rank), Question, { n: 3 });
    expect(events).toContain(`dropped ${subjects.acks(rank)}`);

    await setup.recover();
    await Promise.all([stateIs(gateway, "connected"), stateIs(worker, "connected")]);
    await worker.flush(5000);
    expect(await gateway.request(ask, Question, { n: 4 }, Reply, 5000)).toMatchObject({ doubled: 8 });
    gateway.publish(subjects.acks(rank), Question, { n: 5 });
    await until(() => seen.length > 0);
    expect(seen).toEqual([5]);
    expect(states).toEqual(["disconnected", "connected"]);
    expect(events.filter((event) => event.startsWith("state"))).toEqual(["state disconnected", "state connected"]);
  });

  test("epochs rise for all keys and askers, across an outage", async () => {
    const { gateway, setup } = await pair();
    const other = await setup.gateway();
    const epochs = [await gateway.nextEpoch("w1-r0"), await other.nextEpoch("w1-r0"), await gateway.nextEpoch("w2-r0")];
    await setup.outage();
    await stateIs(gateway, "disconnected");
    expect((await failure(gateway.nextEpoch("w1-r0"))).code).toBe("bus_unavailable");
    await setup.recover();
    await stateIs(gateway, "connected");
    epochs.push(await gateway.nextEpoch("w1-r0"), await gateway.nextEpoch("w2-r0"));
    expect(epochs[0]).toBeGreaterThanOrEqual(1);
    expect(epochs).toEqual([...new Set(epochs)].sort((a, b) => a - b));
  });

  test("close sends what was published, ends waiting requests and is final", async () => {
    const { gateway, worker } = await pair();
    const seen: number[] = [];
    worker.subscribe(subjects.acks(rank), Question, ({ n }) => void seen.push(n));
    worker.respond(ask, Question, Reply, () => new Promise(() => {}));
    await worker.flush(1000);
    const waiting = failure(gateway.request(ask, Question, { n: 0 }, Reply, 30_000));
    gateway.publish(subjects.acks(rank), Question, { n: 1 });
    await gateway.close(2000);
    await gateway.close(2000);
    expect((await waiting).code).toBe("bus_unavailable");
    expect(gateway.state).toBe("closed");
    await until(() => seen.length === 1);
    gateway.publish(subjects.acks(rank), Question, { n: 2 });
    gateway.subscribe(stream, Item, () => {}).unsubscribe();
    expect((await failure(gateway.request(ask, Question, { n: 3 }, Reply, 100))).code).toBe("bus_unavailable");
  });
});
