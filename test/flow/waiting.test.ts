import { describe, expect, test } from "vitest";
import { MOST_FAILED_ATTEMPTS } from "../../control-plane/flow/retry-policy.ts";
import { NANO } from "../support/fleet-of.ts";
import { answerOf, FlowWorld, type Ride } from "../support/flow-world.ts";
import { refusal } from "../support/scripted-rank.ts";

describe("a fleet at zero", () => {
  test("a request waits, says that workers are waking, and is served when they come", async () => {
    const world = new FlowWorld();
    const ride = world.send();
    await world.clock.advance(20_000);
    expect(ride.ends).toBe(0);
    expect(ride.progress.map((one) => one.phase)).toEqual(["waking"]);
    expect(world.arrivals).toBe(1);
    expect(world.waitingRoom.oldestWaitMs(NANO)).toBe(20_000);
    expect(world.waitingRoom.missing(NANO)).toBe("decode");
    world.rank("decode", "d1");
    // At once, though the room looks at changes of the fleet a moment later: a second decode worker would be one too many.
    await world.clock.settle();
    expect(world.waitingRoom.missing(NANO)).toBe("prefill");
    world.rank("prefill", "p1");
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(20));
    expect(ride.settled?.timings.queueMs).toBeGreaterThanOrEqual(20_000);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("that stays there: capacity_timeout at the wait limit, with a time to come back", async () => {
    const world = new FlowWorld({ waitMs: 3_000 });
    const ride = world.send();
    await world.clock.advance(2_900);
    expect(ride.ends).toBe(0);
    await world.clock.advance(200);
    expect(ride.error).toMatchObject({ code: "capacity_timeout", status: 503, retryAfterMs: expect.any(Number) });
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("of a request that waits no longer than it says: capacity_timeout then, whatever others may wait", async () => {
    const world = new FlowWorld({ waitMs: 60_000 });
    const [brief, never, patient] = [world.send({ maxWaitMs: 1_500 }), world.send({ maxWaitMs: 0 }), world.send()];
    await world.clock.advance(10);
    expect(never.error).toMatchObject({ code: "capacity_timeout", retryAfterMs: expect.any(Number) });
    await world.clock.advance(1_400);
    expect(brief.ends).toBe(0);
    await world.clock.advance(200);
    expect(brief.error?.message).toMatch(/within 1\.5 seconds/);
    await world.fleetOf(1, 1);
    expect((await world.end(patient)).tokens).toEqual(answerOf(20));
    const placed = world.send({ maxWaitMs: 0 });
    expect((await world.end(placed)).tokens).toEqual(answerOf(20));
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("because its workers cannot start: told why after ten seconds, however long others may wait", async () => {
    const world = new FlowWorld({ waitMs: 120_000 });
    const ride = world.send();
    await world.clock.advance(9_000);
    world.whyNone = { sentence: "decode worker: tensor x is missing", mayPass: false };
    await world.clock.advance(900);
    expect(ride.ends).toBe(0);
    await world.clock.advance(200);
    expect(ride.error).toMatchObject({ code: "no_worker", message: expect.stringContaining("tensor x is missing") });
    expect(await world.heldAfterwards()).toEqual([]);
  });
});

test("a stream that lost its rank waits no longer than it said, and keeps the tokens it has", async () => {
  const world = new FlowWorld({ waitMs: 60_000 });
  const { d } = await world.fleetOf(1, 1);
  const ride = world.send({ maxNewTokens: 400, maxWaitMs: 2_000 });
  await world.until(() => ride.tokens.length > 50);
  d[0]!.kill();
  await world.end(ride, 10_000);
  expect(ride.error?.code).toBe("capacity_timeout");
  expect(ride.tokens).toEqual(answerOf(ride.tokens.length));
  expect(await world.heldAfterwards()).toEqual([]);
});

describe("the queue", () => {
  test("is bounded: the next one is told queue_full and when to come back", async () => {
    const world = new FlowWorld({ mostWaiting: 3, waitMs: 8_000 });
    const rides = Array.from({ length: 4 }, () => world.send());
    await world.clock.advance(0);
    expect(rides.map((ride) => ride.error?.code ?? null)).toEqual([null, null, null, "queue_full"]);
    expect(rides[3]!.error).toMatchObject({ status: 429, retryAfterMs: 2_000 });
    await world.fleetOf(1, 1);
    for (const ride of rides.slice(0, 3)) expect((await world.end(ride)).tokens).toEqual(answerOf(20));
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("a stream that lost its rank keeps its turn, however full the queue is", async () => {
    const world = new FlowWorld({ mostWaiting: 2 });
    const { d } = await world.fleetOf(1, 1);
    d[0]!.load = { ...d[0]!.load, maxRequests: 1 };
    d[0]!.beat();
    const first = world.send({ maxNewTokens: 40 });
    await world.until(() => first.tokens.length > 5);
    const later = [world.send(), world.send()];
    d[0]!.kill();
    await world.clock.advance(4_000);
    expect(world.waitingRoom.waiting(NANO)).toBe(3);
    world.rank("decode", "d2", { load: { maxRequests: 1 } });
    await world.end(first);
    expect(first.tokens).toEqual(answerOf(40));
    expect(later.map((ride) => ride.tokens.length)).toEqual([0, 0]);
    for (const ride of later) await world.end(ride);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("is served in the order of arrival", async () => {
    const world = new FlowWorld();
    const served: number[] = [];
    const rides: Ride[] = [];
    for (let i = 0; i < 6; i++) {
      const onTokens = (soFar: number) => {
        if (soFar === 1) served.push(i);
        return "more" as const;
      };
      rides.push(world.send({ maxNewTokens: 3, onTokens }));
      await world.clock.advance(1);
    }
    world.rank("decode", "d1", { load: { maxRequests: 1 } });
    world.rank("prefill", "p1", { load: { maxRequests: 1 } });
    for (const ride of rides) await world.end(ride);
    expect(served).toEqual([0, 1, 2, 3, 4, 5]);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("one that leaves does not hold up the next", async () => {
    const world = new FlowWorld();
    const [first, second] = [world.send({ prompt: 3_900, maxNewTokens: 100 }), world.send()];
    world.rank("prefill", "p1");
    world.rank("decode", "d1", { load: { blocksAvailable: 10 } });
    await world.clock.advance(500);
    expect([first.ends, second.ends, second.tokens.length]).toEqual([0, 0, 0]);
    first.abort.abort();
    await world.end(second);
    expect(second.tokens).toEqual(answerOf(20));
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("the wait limit holds for those behind one that came back, too", async () => {
    const world = new FlowWorld({ waitMs: 5_000 });
    const { d } = await world.fleetOf(1, 1);
    d[0]!.load = { ...d[0]!.load, maxRequests: 1 };
    d[0]!.beat();
    const first = world.send({ maxNewTokens: 4_000 });
    await world.until(() => first.tokens.length > 5);
    const second = world.send();
    await world.clock.advance(1_000);
    d[0]!.kill();
    await world.clock.advance(4_100);
    expect(second.error?.code).toBe("capacity_timeout");
    expect(first.ends).toBe(0);
    await world.end(first);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("a request larger than every pool is refused at once, and does not stand in the way", async () => {
    const world = new FlowWorld();
    world.rank("prefill", "p1");
    world.rank("decode", "d1", { load: { blocksTotal: 10, blocksAvailable: 10 } });
    const [large, small] = [world.send({ maxNewTokens: 1_000 }), world.send()];
    await world.clock.advance(10);
    expect(large.error).toMatchObject({ code: "context_length_exceeded", message: expect.stringContaining("10") });
    expect((await world.end(small)).tokens).toEqual(answerOf(20));
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("closing it ends who waits, and who comes after", async () => {
    const world = new FlowWorld();
    const ride = world.send();
    await world.clock.advance(10);
    world.waitingRoom.close();
    const late = world.send();
    await world.clock.advance(10);
    expect([ride.error?.code, late.error?.code]).toEqual(["shutting_down", "shutting_down"]);
    expect(await world.heldAfterwards()).toEqual([]);
  });
});

describe("trying again", () => {
  test("a rank that is always busy: capacity_timeout by the wait limit, not by the budget", async () => {
    const world = new FlowWorld({ waitMs: 5_000 });
    const { d } = await world.fleetOf(1, 1);
    d[0]!.onReserve = () => refusal("busy", 50);
    const ride = await world.end(world.send());
    expect(ride.error?.code).toBe("capacity_timeout");
    expect(d[0]!.count("reserve-kv")).toBeGreaterThan(MOST_FAILED_ATTEMPTS);
    expect(world.clock.monotonic()).toBeLessThan(11_000);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("ranks that always fail: the budget ends it with what they said", async () => {
    const world = new FlowWorld();
    const { p } = await world.fleetOf(3, 3);
    for (const rank of p) rank.onPrefill = () => refusal("internal");
    const ride = await world.end(world.send());
    expect(ride.error?.code).toBe("internal");
    const most = (MOST_FAILED_ATTEMPTS + 1) * p.length;
    expect(p.reduce((sum, rank) => sum + rank.count("prefill-work"), 0)).toBeLessThanOrEqual(most);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("a verdict of never is not tried again", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 2);
    for (const rank of d) rank.onReserve = () => refusal("context_length_exceeded");
    const ride = await world.end(world.send());
    expect(ride.error?.code).toBe("context_length_exceeded");
    expect(d[0]!.count("reserve-kv") + d[1]!.count("reserve-kv")).toBe(1);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("a long stream whose rank drains is not told that no worker came", async () => {
    const world = new FlowWorld({ waitMs: 2_000 });
    const { d } = await world.fleetOf(1, 2);
    const ride = world.send({ maxNewTokens: 600 });
    await world.until(() => ride.tokens.length > 400);
    d.find((rank) => rank.held.size === 1)!.giveUp("draining");
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(600));
    expect(await world.heldAfterwards()).toEqual([]);
  });
});
