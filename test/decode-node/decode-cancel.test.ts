import { afterEach, beforeEach, expect, test } from "vitest";
import { generationOf, promptOf } from "../support/generation.ts";
import { NodeWorld, refused } from "../support/node-world.ts";

let world: NodeWorld;

beforeEach(() => {
  world = new NodeWorld();
});
afterEach(async () => {
  await world.close();
});

for (const phase of ["reserved", "receiving", "waiting for pages", "computing the prompt", "decoding"] as const) {
  test(`a cancel while ${phase} leaves nothing held once it is acknowledged`, async () => {
    const p = await world.prefill({ model: { stepMs: 20 } });
    const d = await world.decode({ maxStepTokens: 32, model: { stepMs: 20 } });
    const head = world.gateway.head();
    const generation = generationOf(promptOf(400), { maxNewTokens: 50 });
    const reservation = await world.reserve(d, head, generation);
    let start = null;
    if (phase === "receiving" || phase === "waiting for pages") {
      world.fabric.fault = (page) => (page.index > 3 ? "lose" : "deliver");
      await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reservation));
      await world.until(() => d.engine.stats().pagesReceived > 0);
      if (phase === "waiting for pages") start = world.gateway.start(reservation, head, 100);
    } else if (phase !== "reserved") {
      await world.settle(world.gateway.start(reservation, head, null));
      if (phase === "decoding") await world.until(() => world.gateway.stream(head.requestId).tokens.length > 5);
    }
    await world.clock.advance(7);
    const startMs = world.clock.now();
    expect(await world.settle(world.gateway.cancel(d.rankId, head))).toMatchObject({ kind: "cancelled", known: true });
    expect(d.held()).toBe(0);
    expect(d.engine.stats().sequences).toBe(0);
    expect(world.clock.now() - startMs).toBeLessThanOrEqual(50);
    if (start !== null) expect(await world.settle(start)).toEqual(refused("cancelled"));
    const { length } = world.gateway.stream(head.requestId).tokens;
    await world.clock.advance(500);
    expect(world.gateway.stream(head.requestId).tokens.length).toBe(length);
    expect(world.gateway.stream(head.requestId).done).toBeNull();
    expect(await world.settle(world.gateway.cancel(d.rankId, head))).toMatchObject({ kind: "cancelled", known: false });
    const late = await world.settle(world.gateway.reserve(d.rankId, d.epoch, head, generation));
    expect(late).toEqual(refused("cancelled"));
    expect(await world.settle(world.gateway.start(reservation, head, null))).toEqual(refused("cancelled"));
    await world.settle(world.gateway.cancel(p.rankId, head));
    await world.clock.advance(10_000);
  });
}

test("a reservation that arrives behind its own cancel is refused", async () => {
  const d = await world.decode();
  const head = world.gateway.head();
  expect(await world.settle(world.gateway.cancel(d.rankId, head))).toMatchObject({ kind: "cancelled", known: false });
  const reply = await world.settle(world.gateway.reserve(d.rankId, d.epoch, head, generationOf(promptOf(20))));
  expect(reply).toEqual(refused("cancelled"));
});

test("a newer attempt replaces an older one on the same rank, whatever that was doing", async () => {
  const d = await world.decode();
  const old = world.gateway.head(0);
  const next = world.gateway.head(1, old.requestId);
  const generation = generationOf(promptOf(50), { maxNewTokens: 40 });
  const { reservation } = await world.serveLocally(d, old, generation);
  await world.until(() => world.gateway.stream(old.requestId).tokens.length > 5);
  const second = await world.reserve(d, next, generation);
  await world.clock.advance(5);
  const { length } = world.gateway.stream(old.requestId).tokens;
  expect(await world.settle(world.gateway.start(reservation, old, null))).toEqual(refused("cancelled"));
  const late = await world.settle(world.gateway.reserve(d.rankId, d.epoch, old, generation));
  expect(late).toEqual(refused("cancelled"));
  expect(await world.settle(world.gateway.resume(d.rankId, old, 0))).toEqual(refused("unknown_request"));
  await world.clock.advance(50);
  expect(world.gateway.stream(old.requestId).tokens.length).toBe(length);
  await world.settle(world.gateway.start(second, next, null));
  await world.done(next);
  expect(d.engine.stats().sequences).toBe(0);
});

test("a cancel behind the end of a request forgets its tail", async () => {
  const d = await world.decode();
  const head = world.gateway.head();
  await world.serveLocally(d, head, generationOf(promptOf(50), { maxNewTokens: 3 }));
  await world.done(head);
  expect(await world.settle(world.gateway.cancel(d.rankId, head))).toMatchObject({ kind: "cancelled", known: false });
  expect(await world.settle(world.gateway.resume(d.rankId, head, 0))).toEqual(refused("unknown_request"));
});
