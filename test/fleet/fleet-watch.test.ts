import { beforeEach, describe, expect, test } from "vitest";
import { z } from "zod";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import type { GatewayId, RankId, WorkerId } from "#protocol/ids.ts";
import type { KvMissed } from "#protocol/kv.ts";
import { subjects } from "#protocol/subjects.ts";
import {
  GATEWAY_BEAT_MS,
  GatewayBeat,
  HEARTBEAT_TIMEOUT_MS,
  Hello,
  MAX_CLOCK_SKEW_MS,
  Refused,
  Welcome,
} from "#protocol/worker.ts";
import { silentLogger } from "#service/logger.ts";
import { FORGET_MS, SKEWED_BEATS } from "../../control-plane/fleet/fleet.ts";
import { FleetWatch } from "../../control-plane/fleet/fleet-watch.ts";
import { FakeClock, fakeRandom } from "../support/fake-clock.ts";
import { cardOf } from "../support/fleet-of.ts";
import { ScriptedRank } from "../support/scripted-rank.ts";

const HelloReply = z.discriminatedUnion("kind", [Welcome, Refused]);
const h = (name: string): string => name.padEnd(16, ".");

let clock: FakeClock;
let network: MemoryNetwork;
let watch: FleetWatch;
let lost: [RankId, number][];
const bus = () => network.connect();

beforeEach(() => {
  clock = new FakeClock();
  network = new MemoryNetwork(clock, fakeRandom(3));
  watch = new FleetWatch({ bus: network.connect(), clock, logger: silentLogger, gatewayId: "gw" as GatewayId });
  lost = [];
  watch.onLost((rankId, epoch) => lost.push([rankId, epoch]));
  watch.start();
});

async function joined(name = "d1"): Promise<ScriptedRank> {
  const rank = new ScriptedRank(network.connect(), clock, "decode", name).join();
  await clock.settle();
  return rank;
}
const seen = (rank: ScriptedRank) => watch.snapshot.ranks.get(rank.rankId);

describe("ranks", () => {
  test("a rank whose process has ended stays gone when a heartbeat of it comes late; its next start is a new one", async () => {
    const rank = await joined();
    watch.rankEnded(rank.rankId);
    rank.beat();
    await clock.settle();
    expect(seen(rank)).toBeUndefined();
    expect(lost).toEqual([[rank.rankId, 1]]);
    rank.epoch = 2;
    rank.beat();
    await clock.settle();
    expect(seen(rank)).toMatchObject({ epoch: 2, state: "ready" });
  });

  test("are known from their first heartbeat, and every change is told", async () => {
    let changes = 0;
    watch.onChange(() => changes++);
    const rank = await joined();
    expect(seen(rank)).toMatchObject({ state: "ready", epoch: 1, ownRequests: 0 });
    expect(watch.isAlive(rank.rankId, 1)).toBe(true);
    expect(changes).toBe(1);
    rank.state = "draining";
    rank.beat();
    await clock.settle();
    expect(seen(rank)?.state).toBe("draining");
    expect(watch.isAlive(rank.rankId, 1)).toBe(true);
  });

  test("that are silent are lost after the timeout, told once, and come back with a heartbeat", async () => {
    const rank = await joined();
    await clock.advance(1_000);
    rank.freeze();
    await clock.advance(HEARTBEAT_TIMEOUT_MS - 300);
    expect(lost).toEqual([]);
    await clock.advance(600);
    expect(lost).toEqual([[rank.rankId, 1]]);
    expect([watch.isAlive(rank.rankId, 1), watch.isKnown(rank.rankId, 1)]).toEqual([false, true]);
    await clock.advance(5_000);
    expect(lost.length).toBe(1);
    rank.thaw();
    await clock.settle();
    expect(watch.isAlive(rank.rankId, 1)).toBe(true);
  });

  test("that stay silent are forgotten, with their prefixes", async () => {
    const rank = await joined();
    rank.kvEvents(0, [h("a")]);
    await clock.settle();
    expect(watch.prefixes.size).toBe(1);
    rank.kill();
    await clock.advance(FORGET_MS + HEARTBEAT_TIMEOUT_MS);
    expect([seen(rank), watch.prefixes.size, lost.length]).toEqual([undefined, 0, 1]);
  });

  test("that say goodbye are gone at once; a goodbye or heartbeat of an earlier epoch changes nothing", async () => {
    const rank = await joined();
    rank.epoch = 3;
    rank.beat();
    await clock.settle();
    expect(lost).toEqual([[rank.rankId, 1]]);
    rank.epoch = 2;
    rank.beat();
    await clock.settle();
    expect(seen(rank)?.epoch).toBe(3);
    rank.epoch = 3;
    rank.leave();
    await clock.settle();
    expect(seen(rank)).toBeUndefined();
    expect(lost).toEqual([
      [rank.rankId, 1],
      [rank.rankId, 3],
    ]);
  });

  test("that restart owe nothing for what the last epoch held", async () => {
    const rank = await joined();
    const leave = watch.occupy(seen(rank)!, 100);
    expect(seen(rank)).toMatchObject({ ownRequests: 1, ownPrefillTokens: 100 });
    rank.epoch = 2;
    rank.beat();
    await clock.settle();
    expect(seen(rank)).toMatchObject({ ownRequests: 0, ownPrefillTokens: 0 });
    watch.occupy(seen(rank)!, 7);
    leave();
    leave();
    expect(seen(rank)).toMatchObject({ ownRequests: 1, ownPrefillTokens: 7 });
  });

  test("W2: are not lost for a silence while the bus was away", async () => {
    const rank = await joined();
    network.stop();
    await clock.advance(30_000);
    expect(watch.isAlive(rank.rankId, 1)).toBe(true);
    network.start();
    await clock.advance(1_000);
    rank.kill();
    await clock.advance(HEARTBEAT_TIMEOUT_MS + 500);
    expect(lost).toEqual([[rank.rankId, 1]]);
  });
});

describe("clocks", () => {
  const hello = (clockMs: number) =>
    bus().request(
      subjects.hello(),
      Hello,
      {
        ...{ kind: "hello", workerId: "w" as WorkerId, rankId: "w-r0" as RankId, rank: 0, ranks: 1, role: "decode" },
        ...{ model: cardOf(), experts: 0, clockMs },
      },
      HelloReply,
      1_000,
    );

  test("a rank whose clock is off is refused with a sentence; every welcome has a higher epoch", async () => {
    const first = await hello(clock.now());
    const second = await hello(clock.now() - MAX_CLOCK_SKEW_MS);
    expect(first).toMatchObject({ kind: "welcome", gatewayId: "gw" });
    expect(second.kind === "welcome" && first.kind === "welcome" && second.epoch > first.epoch).toBe(true);
    const refusal = await hello(clock.now() + MAX_CLOCK_SKEW_MS + 1);
    expect(refusal).toMatchObject({
      kind: "refused",
      code: "incompatible",
      detail: expect.stringContaining("2001 ms"),
    });
  });

  test("one that drifts later counts its skewed heartbeats, and a right one forgives them", async () => {
    const rank = await joined();
    rank.clockAheadMs = -MAX_CLOCK_SKEW_MS - 1;
    for (let i = 0; i < SKEWED_BEATS; i++) rank.beat();
    await clock.settle();
    expect(seen(rank)?.skewedBeats).toBe(SKEWED_BEATS);
    rank.clockAheadMs = 0;
    rank.beat();
    await clock.settle();
    expect(seen(rank)?.skewedBeats).toBe(0);
  });

  test("ranks are told that this control plane lives", async () => {
    let beats = 0;
    bus().subscribe(subjects.gatewayBeats(), GatewayBeat, () => beats++);
    await clock.advance(GATEWAY_BEAT_MS * 5);
    expect(beats).toBe(5);
  });
});

describe("prefix caches", () => {
  test("a gap in events is closed by a snapshot", async () => {
    const rank = await joined();
    rank.kvEvents(0, [h("a")]);
    rank.cached = [h("a"), h("b"), h("c")];
    rank.kvEvents(2, [h("c")]);
    await clock.settle();
    expect(rank.snapshots).toBe(1);
    expect(watch.prefixes.cachedBlocks(rank.rankId, [h("a"), h("b"), h("c")])).toBe(3);
  });

  test("a rank that keeps what was missed tells it again, and nothing else", async () => {
    const rank = await joined();
    const bytes = (...names: string[]) => new Uint8Array(Buffer.from(names.join(""), "latin1"));
    const asked: KvMissed[] = [];
    rank.onMissed = (missed) => {
      asked.push(missed);
      const changes = [{ stored: bytes(h("b")), removed: bytes(h("a")) }];
      return { kind: "kv-replay", rankId: rank.rankId, epoch: rank.epoch, seq: missed.seq + 1, changes };
    };
    rank.kvEvents(0, [h("a")]);
    rank.kvEvents(2, [h("c")]);
    await clock.settle();
    expect(asked).toEqual([{ kind: "kv-missed", epoch: rank.epoch, seq: 0 }]);
    expect([h("a"), h("b"), h("c")].map((one) => watch.prefixes.cachedBlocks(rank.rankId, [one]))).toEqual([0, 1, 1]);
    expect(rank.snapshots).toBe(0);
  });

  test("the last event lost shows in the next heartbeat", async () => {
    const rank = await joined();
    rank.kvSeq = 4;
    rank.cached = [h("a")];
    await clock.advance(600);
    expect(watch.prefixes.cachedBlocks(rank.rankId, [h("a")])).toBe(1);
    await clock.advance(5_000);
    expect(rank.snapshots).toBe(1);
  });

  test("a snapshot that cannot be had is asked for again, one question at a time", async () => {
    const rank = await joined();
    rank.cached = null;
    for (let seq = 3; seq < 9; seq++) rank.kvEvents(seq, [h("a")]);
    await clock.settle();
    expect(rank.snapshots).toBe(1);
    rank.cached = [h("z")];
    await clock.advance(600);
    expect(watch.prefixes.cachedBlocks(rank.rankId, [h("z")])).toBe(1);
  });

  test("W3: events and snapshots of ranks that are not there are not kept", async () => {
    const rank = await joined();
    rank.kvEvents(0, [h("a")]);
    rank.leave();
    rank.kvEvents(1, [h("b")]);
    await clock.settle();
    expect(watch.prefixes.size).toBe(0);
  });
});

test("a watch that was stopped leaves no timer", async () => {
  const rank = await joined();
  watch.stop();
  rank.kill();
  expect(clock.pending).toBe(0);
});
