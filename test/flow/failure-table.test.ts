import { describe, expect, test } from "vitest";
import type { ResumeReply, ResumeStream } from "#protocol/decode.ts";
import { answerOf, FlowWorld } from "../support/flow-world.ts";
import { refusal } from "../support/scripted-rank.ts";

/** Each row: one thing breaks, and the client's tokens are the same as if nothing had. */

describe("nothing breaks", () => {
  test("a request passes prefill and decode once and tells who worked on it", async () => {
    const world = new FlowWorld();
    const { p, d } = await world.fleetOf(1, 1);
    const ride = await world.end(world.send({ maxNewTokens: 20 }));
    expect(ride.tokens).toEqual(answerOf(20));
    expect(ride.settled).toMatchObject({
      finish: "length",
      completionTokens: 20,
      prefill: "p1",
      decode: "d1",
      attempts: 1,
    });
    expect(p[0]!.count("prefill-work")).toBe(1);
    expect(d[0]!.count("reserve-kv")).toBe(1);
    expect(p[0]!.count("cancel") + d[0]!.count("cancel")).toBe(0);
    expect(ride.progress.map((one) => one.phase)).toEqual(expect.arrayContaining(["placed", "prefilling", "decoding"]));
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("the first token is told before the decode rank has begun", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    const started = Promise.withResolvers<never>();
    d[0]!.onStart = () => started.promise;
    const ride = world.send();
    await world.until(() => d[0]!.count("start-decode") === 1);
    expect(ride.tokens).toEqual(answerOf(1));
    ride.abort.abort();
    await world.end(ride);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("a first token that ends the request starts no decoding and frees the reservation", async () => {
    const world = new FlowWorld();
    const { p, d } = await world.fleetOf(1, 1);
    p[0]!.stopAt = 1;
    const ride = await world.end(world.send());
    expect(ride.tokens).toEqual(answerOf(1));
    expect(ride.settled).toMatchObject({ finish: "stop", completionTokens: 1, decode: null });
    expect(d[0]!.count("start-decode")).toBe(0);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("a short prompt is computed by the decode rank itself", async () => {
    const world = new FlowWorld({ localPrefillTokens: 128 });
    const { p } = await world.fleetOf(1, 1);
    const ride = await world.end(world.send({ prompt: 100 }));
    expect(ride.tokens).toEqual(answerOf(20));
    expect(ride.settled).toMatchObject({ prefill: null, decode: "d1" });
    expect(p[0]!.seen).toEqual([]);
  });

  test("tokens are acknowledged up to the last", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    await world.end(world.send({ maxNewTokens: 50 }));
    await world.heldAfterwards();
    expect([...d[0]!.acked.values()]).toEqual([50]);
  });
});

describe("the prefill rank", () => {
  test("dies before it is done: the same reservation, another prefill rank", async () => {
    const world = new FlowWorld();
    const { p, d } = await world.fleetOf(2, 1);
    p[0]!.finishes = p[1]!.finishes = false;
    const ride = world.send();
    await world.until(() => p[0]!.held.size + p[1]!.held.size === 1);
    const [victim, other] = p[0]!.held.size === 1 ? [p[0]!, p[1]!] : [p[1]!, p[0]!];
    other.finishes = true;
    victim.kill();
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(20));
    expect(ride.settled).toMatchObject({ prefill: other.workerId, attempts: 1 });
    expect(d[0]!.count("reserve-kv")).toBe(1);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("says that it failed: nobody waits for a deadline", async () => {
    const world = new FlowWorld();
    const { p } = await world.fleetOf(2, 1);
    p[0]!.finishes = p[1]!.finishes = false;
    const ride = world.send();
    await world.until(() => p[0]!.held.size + p[1]!.held.size === 1);
    const [victim, other] = p[0]!.held.size === 1 ? [p[0]!, p[1]!] : [p[1]!, p[0]!];
    other.finishes = true;
    const before = world.clock.monotonic();
    victim.prefillFailed("internal");
    await world.until(() => ride.tokens.length > 0);
    expect(world.clock.monotonic() - before).toBeLessThan(1_000);
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(20));
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("the only one there is fails once: it gets the request again", async () => {
    const world = new FlowWorld();
    const { p } = await world.fleetOf(1, 1);
    p[0]!.finishes = false;
    const ride = world.send();
    await world.until(() => p[0]!.held.size === 1);
    p[0]!.finishes = true;
    p[0]!.prefillFailed("transfer_failed");
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(20));
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("is stopped and wakes later: its late word is ignored and counted", async () => {
    const world = new FlowWorld();
    const { p } = await world.fleetOf(2, 1);
    p[0]!.finishes = p[1]!.finishes = false;
    const ride = world.send({ maxNewTokens: 60 });
    await world.until(() => p[0]!.held.size + p[1]!.held.size === 1);
    const [victim, other] = p[0]!.held.size === 1 ? [p[0]!, p[1]!] : [p[1]!, p[0]!];
    other.finishes = victim.finishes = true;
    victim.freeze();
    await world.until(() => ride.tokens.length > 5);
    victim.thaw();
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(60));
    expect(ride.settled?.prefill).toBe(other.workerId);
    expect(await world.metric("margay_duplicate_messages_total")).toBeGreaterThan(0);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("refuses as busy: the request waits for room and spends none of its attempts", async () => {
    const world = new FlowWorld();
    const { p } = await world.fleetOf(1, 1);
    let refused = 0;
    p[0]!.onPrefill = () => (refused++ < 30 ? refusal("busy", 100) : null);
    const ride = await world.end(world.send(), 120_000);
    expect(ride.error).toBeNull();
    expect(ride.tokens).toEqual(answerOf(20));
    expect(refused).toBe(31);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("a failure told after decoding began does not touch the stream", async () => {
    const world = new FlowWorld();
    const { p, d } = await world.fleetOf(1, 1);
    let head = null as Parameters<(typeof d)[0]["onReserve"]>[0]["head"] | null;
    d[0]!.onReserve = (query) => {
      head ??= query.head;
      return null;
    };
    const ride = world.send({ maxNewTokens: 60 });
    await world.until(() => ride.tokens.length > 5);
    p[0]!.held.set(head!.requestId, { head } as never);
    p[0]!.prefillFailed("transfer_failed");
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(60));
    expect(ride.settled?.attempts).toBe(1);
    expect(await world.heldAfterwards()).toEqual([]);
  });
});

describe("the decode rank", () => {
  test("dies while it is reserved: a new placement, and the prefill rank is told to stop", async () => {
    const world = new FlowWorld();
    const { p, d } = await world.fleetOf(1, 2);
    p[0]!.finishes = false;
    const ride = world.send();
    await world.until(() => p[0]!.held.size === 1);
    const victim = d.find((rank) => rank.held.size === 1)!;
    victim.kill();
    p[0]!.finishes = true;
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(20));
    expect(ride.settled).toMatchObject({ attempts: 2, decode: d.find((rank) => rank !== victim)!.workerId });
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test.each(["worker_lost", "transfer_failed", "reservation_expired", "internal", "draining"] as const)(
    "refuses to start (%s): placed again, and the first token is not repeated",
    async (code) => {
      const world = new FlowWorld();
      const { d } = await world.fleetOf(2, 2);
      let refused = 0;
      for (const rank of d) rank.onStart = () => (refused++ === 0 ? refusal(code) : null);
      const ride = await world.end(world.send());
      expect(ride.tokens).toEqual(answerOf(20));
      expect(ride.settled?.attempts).toBe(2);
      expect(await world.heldAfterwards()).toEqual([]);
    },
  );

  test("dies in mid stream: the stream goes on elsewhere without gap or repeat", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 2);
    const ride = world.send({ maxNewTokens: 60 });
    await world.until(() => ride.tokens.length >= 10);
    d.find((rank) => rank.held.size === 1)!.kill();
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(60));
    expect(ride.settled).toMatchObject({ attempts: 2, completionTokens: 60, finish: "length" });
    expect(ride.progress.some((one) => one.phase === "moved")).toBe(true);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("dies again and again in mid stream: each death costs a pause, never the answer", async () => {
    const world = new FlowWorld();
    await world.fleetOf(1, 1);
    const ride = world.send({ maxNewTokens: 130 });
    for (let death = 1; death <= 12; death++) {
      await world.until(() => ride.tokens.length >= death * 10);
      world.ranks.find((rank) => rank.role === "decode" && rank.held.size === 1)!.kill();
      world.rank("decode", `spare${death}`);
    }
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(130));
    expect(ride.settled?.attempts).toBe(13);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("is stopped in mid stream and wakes later: its late tokens are ignored, what it held is given back", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 2);
    const ride = world.send({ maxNewTokens: 200 });
    await world.until(() => ride.tokens.length >= 10);
    const victim = d.find((rank) => rank.held.size === 1)!;
    victim.freeze();
    const before = ride.tokens.length;
    await world.until(() => ride.tokens.length > before + 20);
    victim.thaw();
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(200));
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("is stopped for half a minute: the cancellation reaches it when it wakes", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 2);
    const ride = world.send({ maxNewTokens: 100_000 });
    await world.until(() => ride.tokens.length >= 10);
    const victim = d.find((rank) => rank.held.size === 1)!;
    victim.freeze();
    await world.clock.advance(30_000);
    ride.abort.abort();
    await world.end(ride);
    victim.thaw();
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("hands its work back at the end of its drain: the stream moves", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 2);
    const ride = world.send({ maxNewTokens: 60 });
    await world.until(() => ride.tokens.length >= 10);
    const victim = d.find((rank) => rank.held.size === 1)!;
    victim.state = "draining";
    victim.beat();
    await world.clock.advance(50);
    expect(ride.settled).toBeNull();
    victim.giveUp("draining");
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(60));
    expect(ride.settled?.attempts).toBe(2);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("leaves right behind its last word: the request has ended, nothing is tried again", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 2);
    for (const rank of d) {
      rank.tamper = (batch) => {
        if (batch.chunks.some((chunk) => chunk.done !== null)) queueMicrotask(() => rank.leave());
        return [batch];
      };
    }
    const ride = world.send({ maxNewTokens: 20 });
    await world.end(ride);
    expect(ride.settled).toMatchObject({ attempts: 1, completionTokens: 20, finish: "length" });
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("stands still but answers: the stream is moved once it has waited long enough", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 2);
    const ride = world.send({ maxNewTokens: 60 });
    await world.until(() => ride.tokens.length >= 10);
    d.find((rank) => rank.held.size === 1)!.steps = false;
    await world.end(ride, 180_000);
    expect(ride.tokens).toEqual(answerOf(60));
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("comes back under another epoch: what the old one held is placed again", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    const ride = world.send({ maxNewTokens: 60 });
    await world.until(() => ride.tokens.length >= 10);
    d[0]!.kill();
    const reborn = world.rank("decode", "d1");
    reborn.epoch = 2;
    reborn.beat();
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(60));
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("has a broken model: the request fails at once with what it said", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 2);
    const ride = world.send({ maxNewTokens: 60 });
    await world.until(() => ride.tokens.length >= 10);
    d.find((rank) => rank.held.size === 1)!.giveUp("numeric");
    await world.end(ride);
    expect(ride.error?.code).toBe("numeric");
    expect(await world.heldAfterwards()).toEqual([]);
  });
});

describe("token messages", () => {
  test("one is lost: asked for again, nothing is placed anew", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    d[0]!.tamper = (batch) => (batch.chunks[0]!.seq === 7 ? [] : [batch]);
    const ride = await world.end(world.send());
    expect(ride.tokens).toEqual(answerOf(20));
    expect(ride.settled?.attempts).toBe(1);
    expect(await world.metric("margay_streams_resumed_total")).toBe(1);
  });

  test("one is lost, and what it held is told after the attempt is over: nobody is told or charged it", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    const answer = Promise.withResolvers<ResumeReply>();
    d[0]!.tamper = (batch) => (batch.chunks[0]!.seq === 7 ? [] : [batch]);
    let asked: ResumeStream | null = null;
    d[0]!.onResume = (message) => {
      asked = message;
      return answer.promise;
    };
    const ride = world.send();
    await world.until(() => asked !== null);
    const { requestId, attempt } = asked!.head;
    // That it leaves is heard first.
    d[0]!.leave();
    await world.clock.settle();
    const tokens = Int32Array.from(answerOf(12).slice(7));
    answer.resolve({ kind: "resumed", chunk: { requestId, attempt, seq: 7, tokens, logprobs: null, done: null } });
    await world.clock.settle();
    expect(ride.tokens.length).toBe(7);
    world.rank("decode", "d2");
    await world.end(ride);
    expect(ride.tokens).toEqual(answerOf(20));
    expect(ride.use?.outputTokens).toBe(20);
    expect(await world.metric("margay_streams_resumed_total")).toBe(0);
    expect(await world.heldAfterwards()).toEqual([]);
  });

  test("the last one is lost: found out by silence", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    d[0]!.tamper = (batch) => (batch.chunks[0]!.done === null ? [batch] : []);
    const ride = await world.end(world.send());
    expect(ride.tokens).toEqual(answerOf(20));
    expect(ride.settled).toMatchObject({ attempts: 1, finish: "length" });
  });

  test("every one comes twice: each token is told once", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    d[0]!.tamper = (batch) => [batch, batch];
    const ride = await world.end(world.send());
    expect(ride.tokens).toEqual(answerOf(20));
    expect(ride.ends).toBe(1);
    expect(await world.metric("margay_duplicate_messages_total")).toBeGreaterThan(10);
  });

  test("they overtake each other: told in order", async () => {
    const world = new FlowWorld();
    const { d } = await world.fleetOf(1, 1);
    const kept: Parameters<(typeof d)[0]["tamper"]>[0][] = [];
    d[0]!.tamper = (batch) => {
      kept.push(batch);
      return batch.chunks[0]!.done !== null || kept.length === 3 ? kept.splice(0).reverse() : [];
    };
    const ride = await world.end(world.send());
    expect(ride.tokens).toEqual(answerOf(20));
    expect(ride.settled?.attempts).toBe(1);
  });
});
