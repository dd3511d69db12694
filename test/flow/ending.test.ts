import { describe, expect, test } from "vitest";
import type { TokenBatch } from "#protocol/decode.ts";
import { answerOf, FlowWorld } from "../support/flow-world.ts";

const never = new Promise<never>(() => {});

/** A rank's batches come ten at a time, as one: their chunks are heard without a pause. */
function inTens(): (batch: TokenBatch) => readonly TokenBatch[] {
  const kept: TokenBatch[] = [];
  return (batch) => {
    kept.push(batch);
    if (kept.length < 10) return [];
    return [{ ...batch, chunks: kept.splice(0).flatMap(({ chunks }) => chunks) }];
  };
}

describe("the client leaves", () => {
  test.each([
    ["before there is a place", "waiting"],
    ["while the decode rank reserves", "reserve"],
    ["while the prefill rank is asked", "ask"],
    ["while the prompt is computed", "prefill"],
    ["while pages are on their way", "start"],
    ["in mid stream", "stream"],
  ] as const)("%s: both ranks hold nothing, the answer is cancelled once", async (_, phase) => {
    const world = new FlowWorld();
    const { p, d } = phase === "waiting" ? { p: [], d: [] } : await world.fleetOf(1, 1);
    const answer = Promise.withResolvers<void>();
    // The rank has reserved, but says so only after the client has gone.
    if (phase === "reserve") d[0]!.late = answer.promise;
    if (phase === "ask") p[0]!.onPrefill = () => never;
    if (phase === "prefill") p[0]!.finishes = false;
    if (phase === "start") d[0]!.onStart = () => never;
    const ride = world.send({ maxNewTokens: 100 });
    const reached = {
      waiting: () => true,
      reserve: () => d[0]!.held.size === 1,
      ask: () => p[0]!.count("prefill-work") === 1,
      prefill: () => p[0]!.held.size === 1,
      start: () => d[0]!.count("start-decode") === 1,
      stream: () => ride.tokens.length > 10,
    }[phase];
    await world.until(reached);
    const tokens = ride.tokens.length;
    ride.abort.abort();
    await world.clock.settle();
    expect(ride.error).toMatchObject({ code: "cancelled" });
    answer.resolve();
    await world.clock.advance(1_000);
    expect(ride.tokens.length).toBe(tokens);
    expect(ride.ends).toBe(1);
    for (const rank of [...p, ...d]) expect(rank.held.size).toBe(0);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("a request whose client had left before it began takes no place", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    const abort = new AbortController();
    abort.abort();
    const ride = world.send({ abort });
    await world.clock.advance(10);
    expect(ride.error?.code).toBe("cancelled");
    expect(d[0]!.count("reserve-kv")).toBe(0);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("while the bus is away: the ranks are told when it is back", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    const ride = world.send({ maxNewTokens: 100_000 });
    await world.until(() => ride.tokens.length > 10);
    world.network.disconnect(world.bus);
    ride.abort.abort();
    await world.clock.advance(20_000);
    expect(ride.error?.code).toBe("cancelled");
    expect(d[0]!.held.size).toBe(1);
    world.network.reconnect(world.bus);
    await world.clock.advance(5_000);
    expect(d[0]!.held.size).toBe(0);
    expect(await world.heldAfterwards()).toEqual([]);
  });
});

describe("the listener has enough", () => {
  test("with the first token: nothing is started, nothing is held", async () => {
    const world = new FlowWorld();
    const { p, d } = await world.fleetOf(1, 1);
    const ride = await world.end(world.send({ onTokens: () => "enough" }));
    expect(ride.settled).toMatchObject({ finish: "stop", completionTokens: 1, attempts: 1 });
    expect(d[0]!.count("start-decode")).toBe(0);
    expect([p[0]!.count("cancel"), d[0]!.count("cancel")]).toEqual([1, 1]);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("in mid stream: the rank is told, later tokens are not", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    const ride = await world.end(
      world.send({ maxNewTokens: 100_000, onTokens: (soFar) => (soFar >= 30 ? "enough" : "more") }),
    );
    expect(ride.settled).toMatchObject({ finish: "stop" });
    expect(ride.tokens).toEqual(answerOf(30));
    await world.clock.advance(100);
    expect(d[0]!.held.size).toBe(0);
    expect(ride.tokens.length).toBe(30);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test.each(["says so", "leaves"] as const)(
    "tokens that come in one turn with the one after which it %s are neither told nor counted",
    async (how) => {
      const world = new FlowWorld();
      const { d } = await world.fleetOf(1, 1);
      d[0]!.tamper = inTens();
      const ride = world.send({
        maxNewTokens: 100_000,
        onTokens: (soFar) => {
          if (soFar < 16) return "more";
          if (how === "leaves") ride.abort.abort();
          return how === "leaves" ? "more" : "enough";
        },
      });
      await world.end(ride);
      await world.until(() => ride.use !== null);
      expect(ride.tokens).toEqual(answerOf(16));
      expect(ride.settled?.completionTokens).toBe(how === "leaves" ? undefined : 16);
      expect(ride.use?.outputTokens).toBe(16);
      expect(await world.heldAfterwards()).toEqual([]);
    },
  );

  test("in one turn with the rank's last word: the rank hears that it may forget all tokens", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    d[0]!.tamper = inTens();
    const onTokens = (soFar: number) => (soFar >= 16 ? "enough" : "more");
    const ride = await world.end(world.send({ maxNewTokens: 21, onTokens }));
    expect(ride.settled).toMatchObject({ finish: "stop", completionTokens: 16 });
    await world.clock.advance(200);
    expect([...d[0]!.acked.values()]).toEqual([21]);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("a listener that throws ends its request, and no other", async () => {
    const world = new FlowWorld();
    await world.fleetOf(1, 1);
    const bad = world.send({
      maxNewTokens: 60,
      onTokens: (soFar) => {
        if (soFar > 10) throw new Error("scripted");
        return "more";
      },
    });
    const good = world.send({ maxNewTokens: 60 });
    await world.end(good);
    expect(good.tokens).toEqual(answerOf(60));
    expect(bad.error?.code).toBe("internal");
    expect(bad.tokens.length).toBe(11);
    expect(await world.heldAfterwards()).toEqual([]);
  });
});

describe("the deadline", () => {
  test.each(["waiting", "reserve", "prefill", "start", "stream"] as const)(
    "ends a request that is stuck (%s) with exactly one answer",
    async (phase) => {
      const world = new FlowWorld();
      const { p, d } = phase === "waiting" ? { p: [], d: [] } : await world.fleetOf(2, 2);
      for (const rank of d) if (phase === "reserve") rank.onReserve = () => never;
      for (const rank of d) if (phase === "start") rank.onStart = () => never;
      for (const rank of p) if (phase === "prefill") rank.finishes = false;
      const ride = world.send({ deadlineMs: 3_000, maxNewTokens: 100_000 });
      await world.clock.advance(2_999);
      expect(ride.ends).toBe(0);
      await world.clock.advance(2);
      expect(ride.error).toMatchObject({ code: "deadline_exceeded", status: 504 });
      await world.clock.advance(10_000);
      expect(ride.ends).toBe(1);
      expect(await world.heldAfterwards()).toEqual([]);
    },
  );
});

describe("the bus is away for a while", () => {
  test("in mid stream: the stream resumes on the same rank, without gap or repeat", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 2);
    const ride = world.send({ maxNewTokens: 3_000 });
    await world.until(() => ride.tokens.length > 10);
    world.network.stop();
    await world.clock.advance(20_000);
    const before = ride.tokens.length;
    world.network.start();
    await world.clock.advance(500);
    expect(ride.tokens.length).toBeGreaterThan(before + 1_900);
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(3_000));
    expect(ride.settled?.attempts).toBe(1);
    expect(d.map((rank) => rank.count("reserve-kv")).sort()).toEqual([0, 1]);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("and the stream ends meanwhile: its tail and its end are fetched", async () => {
    const world = new FlowWorld();
    await world.fleetOf(1, 1);
    const ride = world.send({ maxNewTokens: 100 });
    await world.until(() => ride.tokens.length > 10);
    world.network.stop();
    await world.clock.advance(5_000);
    expect(ride.ends).toBe(0);
    world.network.start();
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(100));
    expect(ride.settled?.attempts).toBe(1);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("while the prompt is computed: its outcome is asked for again", async () => {
    const world = new FlowWorld();
    const { p } = await world.fleetOf(1, 1);
    p[0]!.finishes = false;
    const ride = world.send();
    await world.until(() => p[0]!.held.size === 1);
    world.network.stop();
    await world.clock.advance(3_000);
    p[0]!.finishes = true;
    world.network.start();
    await world.until(() => ride.tokens.length > 0, 1_000);
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(20));
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("new requests wait for it as they wait for workers", async () => {
    const world = new FlowWorld({ waitMs: 10_000 });
    await world.fleetOf(1, 1);
    world.network.stop();
    const [short, long] = [world.send(), world.send()];
    await world.clock.advance(5_000);
    expect([short.ends, long.ends]).toEqual([0, 0]);
    world.network.start();
    await world.end(short);
    expect(short.tokens).toEqual(answerOf(20));
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("for longer than a request may wait: no_worker with a time to come back", async () => {
    const world = new FlowWorld({ waitMs: 5_000 });
    await world.fleetOf(1, 1);
    world.network.stop();
    const ride = await world.end(world.send(), 20_000);
    expect(ride.error).toMatchObject({ status: 503, retryAfterMs: expect.any(Number) });
    world.network.start();
    expect(await world.heldAfterwards()).toEqual([]);
  });
});
