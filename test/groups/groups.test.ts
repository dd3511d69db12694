import { describe, expect, test } from "vitest";
import { GroupOrder, GroupReply } from "#protocol/group-orders.ts";
import type { Generation } from "#protocol/request.ts";
import { subjects } from "#protocol/subjects.ts";
import { fakeRandom } from "../support/fake-clock.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { type SimRank, SimSystem } from "../support/sim-system.ts";

/** Control plane and whole nodes over simulated engines that form groups, under virtual time. */

async function calm(generation: Generation): Promise<readonly number[]> {
  const system = new SimSystem();
  await system.prefill("p");
  await system.decode("d");
  const call = system.call(generation);
  await system.ended([call]);
  return call.tokens;
}

const memberships = (system: SimSystem) =>
  [...system.fleet.snapshot.ranks.values()].map(({ rankId, state, membership }) => [
    rankId,
    state,
    membership?.members ?? null,
  ]);
const epochs = (system: SimSystem) =>
  [...system.fleet.snapshot.ranks.values()].flatMap(({ membership }) => membership?.epoch ?? []);
/** Generations whose answers take a while. */
const many = (count: number, tokens = 120) =>
  Array.from({ length: count }, (_, i) => generationOf(promptOf(60 + 31 * i, i), { maxNewTokens: tokens }));
const busy = (system: SimSystem, role: "prefill" | "decode"): SimRank =>
  system.ranks.find((rank) => rank.role === role && rank.held() > 0)!;

describe("a group of ranks", () => {
  test("forms when all are there; nobody is ready before; each takes requests of its own", async () => {
    const system = new SimSystem();
    await system.prefill("p");
    await system.rank("decode", "d", 0, 3);
    await system.rank("decode", "d", 1, 3);
    await system.clock.advance(10_000);
    expect(system.ready("decode")).toBe(0);
    await system.rank("decode", "d", 2, 3);
    await system.until(() => system.ready("decode") === 3);
    expect(memberships(system).slice(1)).toEqual([0, 1, 2].map((rank) => [`d-r${rank}`, "ready", [0, 1, 2]]));
    expect(new Set(epochs(system)).size).toBe(1);

    const generations = many(9);
    const expected = [];
    for (const generation of generations) expected.push(await calm(generation));
    const calls = generations.map((generation) => system.call(generation));
    await system.until(() => system.ranks.filter((rank) => rank.role === "decode" && rank.held() > 0).length === 3);
    await system.ended(calls);
    expect(calls.map((call) => call.tokens)).toEqual(expected);
    expect(await system.held()).toEqual([]);
  });

  test("is left alone by a control plane that begins anew, and known to it after one beat", async () => {
    const system = new SimSystem();
    await system.worker("decode", "d", 2);
    await system.until(() => system.ready("decode") === 2);
    const before = epochs(system);
    system.former.stop();
    system.former.start();
    await system.clock.advance(30_000);
    expect(epochs(system)).toEqual(before);
  });

  test.each([
    [2, 1],
    [2, 4],
    [1, 2],
    [4, 2],
  ])("of %i prefill ranks serves with one of %i decode ranks", async (prefill, decode) => {
    const system = new SimSystem();
    await system.worker("prefill", "p", prefill);
    await system.worker("decode", "d", decode);
    const generations = many(4, 20);
    const expected = [];
    for (const generation of generations) expected.push(await calm(generation));
    const calls = generations.map((generation) => system.call(generation));
    await system.ended(calls);
    expect(calls.map((call) => call.tokens)).toEqual(expected);
    expect(await system.held()).toEqual([]);
  });

  test("that drains ends together: the rank that is done first waits for the others", async () => {
    const system = new SimSystem();
    await system.prefill("p");
    const ranks = await system.worker("decode", "d", 2);
    await system.until(() => system.ready("decode") === 2);
    const generation = generationOf(promptOf(300), { maxNewTokens: 200 });
    const call = system.call(generation);
    await system.until(() => call.tokens.length > 20);
    const left: string[] = [];
    const untilMs = system.clock.now() + 10_000;
    for (const { node, rankId } of ranks) void node.drain(untilMs).then(() => left.push(rankId));
    await system.until(() => call.tokens.length > 100);
    expect(left).toEqual([]);
    await system.ended([call]);
    await system.until(() => left.length === 2);
    expect(call.settled?.attempts).toBe(1);
    expect(call.tokens).toHaveLength(200);
  });
});

describe("a rank that is lost", () => {
  test.each(["killed", "stopped"] as const)(
    "(%s) ends its group within two seconds; the others go on without it",
    async (how) => {
      const generations = many(6);
      const expected = [];
      for (const generation of generations) expected.push(await calm(generation));
      const system = new SimSystem();
      await system.prefill("p");
      await system.worker("decode", "d", 3);
      await system.until(() => system.ready("decode") === 3);
      const calls = generations.map((generation) => system.call(generation));
      await system.until(() => calls.some((call) => call.tokens.length > 30));
      const victim = busy(system, "decode");
      const atMs = system.clock.monotonic();
      if (how === "killed") system.kill(victim);
      else system.stop(victim);
      await system.until(() => system.fleet.snapshot.ranks.get(victim.rankId)?.state === "lost");
      expect(system.clock.monotonic() - atMs).toBeLessThanOrEqual(2_000);
      await system.until(() => system.ready("decode") === 2);
      expect(system.clock.monotonic() - atMs).toBeLessThanOrEqual(3_000);
      await system.ended(calls);
      expect(calls.map((call) => call.tokens)).toEqual(expected);
      expect(calls.some((call) => (call.settled?.attempts ?? 0) > 1)).toBe(true);
      if (how === "stopped") {
        system.wake(victim);
        await system.until(() => system.ready("decode") === 3);
        expect(new Set(epochs(system)).size).toBe(1);
      }
      expect(await system.held()).toEqual([]);
    },
  );

  test("is replaced without a request lost: reduced size, then full size again", async () => {
    const generations = many(8, 400);
    const expected = [];
    for (const generation of generations) expected.push(await calm(generation));
    const system = new SimSystem();
    await system.prefill("p");
    const [first] = await system.worker("decode", "d", 2);
    await system.until(() => system.ready("decode") === 2);
    const calls = generations.map((generation) => system.call(generation));
    await system.until(() => calls.some((call) => call.tokens.length > 30));
    system.kill(first!);
    system.fleet.rankEnded(first!.rankId);
    await system.until(() => system.ready("decode") === 1);
    await system.until(() => calls.filter((call) => call.tokens.length > 60).length > 3);
    const attempts = calls.map((call) => call.tokens.length);
    await system.rank("decode", "d", 0, 2);
    await system.until(() => system.ready("decode") === 2);
    await system.ended(calls);
    expect(calls.map((call) => call.tokens)).toEqual(expected);
    expect(attempts.some((tokens) => tokens < 400)).toBe(true);
    // Growing keeps what runs: nobody began anew because a rank came.
    expect(Math.max(...calls.map((call) => call.settled!.attempts))).toBe(2);
    expect(await system.held()).toEqual([]);
  });

  test("prefill ranks alike: prompts are computed again, to the same end", async () => {
    const generations = Array.from({ length: 8 }, (_, i) => generationOf(promptOf(1_500, i), { maxNewTokens: 10 }));
    const expected = [];
    for (const generation of generations) expected.push(await calm(generation));
    const system = new SimSystem();
    await system.worker("prefill", "p", 2);
    await system.worker("decode", "d", 2);
    await system.until(() => system.ready("prefill") + system.ready("decode") === 4);
    const calls = generations.map((generation) => system.call(generation));
    await system.until(() => system.ranks.some((rank) => rank.role === "prefill" && rank.held() > 10));
    system.kill(busy(system, "prefill"));
    await system.ended(calls);
    expect(calls.map((call) => call.error)).toEqual(calls.map(() => null));
    expect(calls.map((call) => call.tokens)).toEqual(expected);
    expect(await system.held()).toEqual([]);
  });

  test("again and again, at any moment: every answer is right and nothing is held", async () => {
    for (let seed = 1; seed <= 6; seed++) {
      const random = fakeRandom(seed);
      const system = new SimSystem({ seed });
      await system.worker("prefill", "p", 2);
      await system.worker("decode", "d", 3);
      const generations = many(12, 60);
      const calls = generations.map((generation) => system.call(generation));
      for (let fault = 0; fault < 4; fault++) {
        await system.clock.advance(random.uniform() * 3_000);
        const victim = system.ranks[Math.floor(random.uniform() * system.ranks.length)]!;
        if (random.uniform() < 0.5) {
          system.stop(victim);
          await system.clock.advance(random.uniform() * 6_000);
          system.wake(victim);
          continue;
        }
        const name = victim.rankId.replace(/-r\d+$/, "");
        const number = Number(/\d+$/.exec(victim.rankId)![0]);
        system.kill(victim);
        if (random.uniform() < 0.5) system.fleet.rankEnded(victim.rankId);
        await system.clock.advance(random.uniform() * 4_000);
        await system.rank(victim.role, name, number, victim.role === "prefill" ? 2 : 3);
      }
      await system.ended(calls);
      expect(calls.map((call) => [call.error, call.tokens.length])).toEqual(calls.map(() => [null, 60]));
      await system.until(() => system.ready("prefill") === 2 && system.ready("decode") === 3);
      expect(await system.held()).toEqual([]);
    }
  });
});

describe("orders", () => {
  const ask = (system: SimSystem, rank: SimRank, order: GroupOrder) =>
    system.network.connect("control-plane").request(subjects.group(rank.rankId), GroupOrder, order, GroupReply, 1_000);

  test("with a map that is not whole, of an old epoch, or for another group are refused with the reason", async () => {
    const system = new SimSystem();
    const [rank] = await system.worker("decode", "d", 2);
    await system.until(() => system.ready("decode") === 2);
    const [groupEpoch] = epochs(system);
    const snapshot = [...system.fleet.snapshot.ranks.values()];
    const members = snapshot.map(({ rank: number, rankId, exchange }) => ({
      rank: number,
      rankId,
      endpoint: exchange!,
    }));
    const owners = Array.from({ length: 12 }, (_, expert) => [expert % 2]);
    const join = (changes: object) =>
      ({
        ...{ kind: "join-group", rankEpoch: snapshot[0]!.epoch, groupEpoch: groupEpoch! + 100, members },
        ...{ secret: "0123456789abcdef", map: { version: 0, owners } },
        ...changes,
      }) as GroupOrder;
    const map = (change: (owners: number[][]) => void) => {
      const changed = owners.map((holders) => [...holders]);
      change(changed);
      return { version: 0, owners: changed };
    };
    const refusals: readonly (readonly [GroupOrder, string, RegExp])[] = [
      [join({ map: map((o) => o.pop()) }), "invalid_request", /has 11 experts and the model 12/],
      [join({ map: map((o) => (o[3] = [])) }), "invalid_request", /gives expert 3 to no rank/],
      [join({ map: map((o) => (o[3] = [1, 1])) }), "invalid_request", /gives expert 3 to one rank twice/],
      [join({ map: map((o) => (o[3] = [2])) }), "invalid_request", /gives expert 3 to rank 2 of 2/],
      [join({ members: Array.from({ length: 13 }, () => members[0]!) }), "invalid_request", /13 ranks is more than/],
      [join({ members: [members[1]!] }), "invalid_request", /is no member/],
      [join({ groupEpoch }), "stale_epoch", /was ordered into group/],
      [join({ rankEpoch: snapshot[0]!.epoch + 1 }), "stale_epoch", /is in epoch/],
      [{ kind: "switch-experts", groupEpoch: groupEpoch!, version: 9 }, "invalid_request", /was not prepared/],
      [{ kind: "expert-loads-query", groupEpoch: groupEpoch! - 1 }, "stale_epoch", /is in group/],
    ];
    for (const [order, code, detail] of refusals) {
      const reply = await system.settled(ask(system, rank!, order));
      expect(reply).toMatchObject({ kind: "refused", code, detail: expect.stringMatching(detail) });
    }
    expect(epochs(system)).toEqual([groupEpoch, groupEpoch]);
    expect(system.ready("decode")).toBe(2);
  });
});

describe("experts that are chosen unevenly", () => {
  test("are spread by a map that all ranks prepare and then switch to; what was hot once does not count again", async () => {
    const system = new SimSystem();
    await system.prefill("p");
    const ranks = await system.worker("decode", "d", 3);
    await system.until(() => system.ready("decode") === 3);
    const call = system.call(generationOf(promptOf(100), { maxNewTokens: 300 }));
    const choose = (loads: readonly number[]) => {
      for (const { engine } of ranks) {
        for (const [expert, load] of loads.entries()) engine.group!.expertLoads[expert]! += load;
      }
    };
    const imbalance = async (map: string) =>
      Number(
        new RegExp(`margay_expert_imbalance{worker="d",map="${map}"} (\\S+)`).exec(await system.metrics.text())?.[1],
      );
    choose([9_000, 1_000, 500, 300, 200, 200, 100, 100, 100, 100, 100, 100]);
    system.balancer.look();
    await system.until(() => ranks.every(({ engine }) => engine.group!.map!.version === 1));
    expect(await imbalance("before")).toBeGreaterThan(2.5);
    expect(await imbalance("after")).toBeLessThan(1.3);
    expect(ranks.map(({ engine }) => engine.group!.map)).toEqual(ranks.map(() => ranks[0]!.engine.group!.map));
    await system.until(() => memberships(system).length === 4);
    // Even from now on: the old heat is forgotten, and nothing moves.
    choose(Array.from({ length: 12 }, () => 1_000));
    await system.clock.advance(1_000);
    system.balancer.look();
    await system.clock.advance(1_000);
    system.balancer.look();
    await system.clock.advance(1_000);
    expect(ranks[0]!.engine.group!.map!.version).toBeLessThanOrEqual(2);
    await system.ended([call]);
    expect(call.settled?.attempts).toBe(1);
    expect(await system.held()).toEqual([]);
  });

  test("are moved on from where they are by a control plane that began anew (E4)", async () => {
    const system = new SimSystem();
    const ranks = await system.worker("decode", "d", 2);
    await system.until(() => system.ready("decode") === 2);
    const heat = (hot: number) => {
      for (const { engine } of ranks) engine.group!.expertLoads[hot]! += 1e6;
    };
    const maps = () => ranks.map(({ engine }) => engine.group!.map!);
    heat(0);
    system.balancer.look();
    await system.until(() => maps().every(({ version }) => version === 1));
    const before = maps()[0]!;
    const successor = system.anotherBalancer();
    for (const [expert, owners] of before.owners.entries()) if (owners.length === 1) heat(expert);
    heat(11);
    successor.look();
    await system.until(() => maps().every(({ version }) => version === 2));
    expect(maps()[0]!.owners).not.toEqual(before.owners);
    expect(system.ready("decode")).toBe(2);
  });

  test("stay where they are when a rank cannot prepare (E1)", async () => {
    const system = new SimSystem();
    const ranks = await system.worker("decode", "d", 2);
    await system.until(() => system.ready("decode") === 2);
    for (const { engine } of ranks) engine.group!.expertLoads[0] = 1e6;
    ranks[1]!.engine.group!.prepareExperts = () => Promise.reject(new Error("no memory"));
    system.balancer.look();
    await system.clock.advance(5_000);
    expect(ranks.map(({ engine }) => engine.group!.map!.version)).toEqual([0, 0]);
    expect(system.ready("decode")).toBe(2);
  });
});
