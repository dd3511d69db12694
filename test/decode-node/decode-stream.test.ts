import { afterEach, beforeEach, expect, test } from "vitest";
import { GATHER_MS } from "../../decode-node/token-stream.ts";
import { SIM_EOS_TOKEN } from "../../native/binding/sim-token.ts";
import { FakeGateway } from "../support/fake-gateway.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { NodeWorld, refused, simTokens } from "../support/node-world.ts";

let world: NodeWorld;

beforeEach(() => {
  world = new NodeWorld();
});
afterEach(async () => {
  await world.close();
});

test("all that one step makes for one gateway travels in one message", async () => {
  const [p, d] = [await world.prefill(), await world.decode({ model: { stepMs: GATHER_MS + 2 } })];
  const other = new FakeGateway(world.network.connect(), world.clock, "gw2");
  const heads = [0, 1, 2, 3, 4].map(() => world.gateway.head());
  for (const [i, head] of heads.entries()) {
    const generation = generationOf(promptOf(30, i), { maxNewTokens: 200 });
    await world.serve(p, d, head, generation);
  }
  const foreign = { ...world.gateway.head(), owner: other.id };
  await world.serveLocally(d, foreign, generationOf(promptOf(30, 9), { maxNewTokens: 200 }));
  await world.until(() => other.batches.length > 2);
  const [before, beforeOther, steps] = [world.gateway.batches.length, other.batches.length, d.engine.stats().steps];
  await world.clock.advance(400);
  const made = d.engine.stats().steps - steps;
  expect(made).toBeGreaterThan(20);
  expect(world.gateway.batches.length - before).toBe(made);
  expect(other.batches.length - beforeOther).toBe(made);
  for (const batch of world.gateway.batches.slice(before)) {
    expect(batch.chunks.map((chunk) => chunk.requestId)).toEqual(heads.map((head) => head.requestId));
  }
  for (const head of [...heads, foreign]) await world.settle(world.gateway.cancel(d.rankId, head));
});

test("tokens the bus lost are told again from any place on, until they are acknowledged", async () => {
  const d = await world.decode();
  const head = world.gateway.head();
  const generation = generationOf(promptOf(50), { maxNewTokens: 30, sampling: { topLogprobs: 1 } });
  await world.serveLocally(d, head, generation);
  await world.until(() => world.gateway.stream(head.requestId).tokens.length >= 5);
  world.gateway.acknowledge(d.rankId, head, 3);
  await world.clock.advance(1);
  world.network.disconnect(d.bus);
  await world.clock.advance(100);
  expect(world.gateway.stream(head.requestId).done).toBeNull();
  world.network.reconnect(d.bus);
  const resumed = await world.settle(world.gateway.resume(d.rankId, head, 4));
  if (resumed.kind !== "resumed") throw new Error(resumed.code);
  expect(resumed.chunk.seq).toBe(4);
  expect([...resumed.chunk.tokens]).toEqual(simTokens(generation, 4, 30));
  expect(resumed.chunk.logprobs).toMatchObject({ width: 1 });
  expect(resumed.chunk.logprobs!.ids.length).toBe(26);
  expect(resumed.chunk.done).toMatchObject({ finish: "length" });
  // What was asked for came and was acknowledged while the question was on its way: told is what follows.
  expect(await world.settle(world.gateway.resume(d.rankId, head, 2))).toMatchObject({
    kind: "resumed",
    chunk: { seq: 3, done: { finish: "length" } },
  });
  expect(await world.settle(world.gateway.resume(d.rankId, world.gateway.head(1, head.requestId), 4))).toEqual(
    refused("unknown_request"),
  );
  world.gateway.acknowledge(d.rankId, head, 30);
  await world.clock.advance(1);
  expect(await world.settle(world.gateway.resume(d.rankId, head, 29))).toEqual(refused("unknown_request"));
});

test("the tail of an ended request is forgotten after 30 s without acknowledgement", async () => {
  const d = await world.decode();
  const head = world.gateway.head();
  await world.serveLocally(d, head, generationOf(promptOf(50), { maxNewTokens: 3 }));
  await world.done(head);
  await world.clock.advance(29_000);
  expect((await world.settle(world.gateway.resume(d.rankId, head, 0))).kind).toBe("resumed");
  await world.clock.advance(2_000);
  expect(await world.settle(world.gateway.resume(d.rankId, head, 0))).toEqual(refused("unknown_request"));
});

test("end of text, a stop token and a broken number end a stream, each in its own words", async () => {
  const broken = promptOf(40, 7);
  const ended = promptOf(40, 8);
  const same = (a: Int32Array, b: Int32Array) => a.every((token, i) => token === b[i]);
  const d = await world.decode({
    model: {
      numericAt: (tokens, index) => same(tokens, broken) && index === 3,
      eosAt: (tokens, index) => same(tokens, ended) && index === 2,
    },
  });
  const [a, b, c] = [world.gateway.head(), world.gateway.head(), world.gateway.head()];
  await world.serveLocally(d, a, generationOf(broken));
  await world.serveLocally(d, b, generationOf(ended));
  const stopping = generationOf(promptOf(40, 9));
  const stopTokens = Int32Array.of(simTokens(stopping, 4, 5)[0]!);
  await world.serveLocally(d, c, { ...stopping, sampling: { ...stopping.sampling, stopTokens } });
  for (const head of [a, b, c]) await world.done(head);
  expect(world.gateway.stream(a.requestId)).toMatchObject({ done: { finish: null, error: "numeric" } });
  expect(world.gateway.stream(a.requestId).tokens).toEqual(simTokens(generationOf(broken), 0, 3));
  expect(world.gateway.stream(b.requestId)).toMatchObject({ done: { finish: "stop" } });
  expect(world.gateway.stream(b.requestId).tokens.at(-1)).toBe(SIM_EOS_TOKEN);
  expect(world.gateway.stream(c.requestId)).toMatchObject({ done: { finish: "stop" } });
  expect(world.gateway.stream(c.requestId).tokens).toEqual(simTokens(stopping, 0, 5));
});
