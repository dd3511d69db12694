import { expect, test } from "vitest";
import type { GatewayId } from "#protocol/ids.ts";
import { OwnerWatch } from "#service/owner-watch.ts";

const a = "gateway-a" as GatewayId;
const b = "gateway-b" as GatewayId;

/** Checks every second from `from` (exclusive) to `to`, as the agent does. */
function silentBetween(watch: OwnerWatch, from: number, to: number): { owner: GatewayId; atMs: number }[] {
  const found: { owner: GatewayId; atMs: number }[] = [];
  for (let atMs = from + 1000; atMs <= to; atMs += 1000) {
    for (const owner of watch.takeSilent(atMs)) found.push({ owner, atMs });
  }
  return found;
}

const newWatch = () => new OwnerWatch(15_000, 3_000, 0);

test("an owner silent for longer than the time-out is reported once, the others are not", () => {
  const watch = newWatch();
  watch.beat(a, 0);
  watch.beat(b, 10_000);
  expect(silentBetween(watch, 0, 24_000)).toEqual([{ owner: a, atMs: 16_000 }]);
  expect(watch.isAlive(b, 24_000)).toBe(true);
});

test("an owner never heard of is alive, and silent if it stays unheard (2)", () => {
  const watch = newWatch();
  expect(watch.isAlive(a, 5_000)).toBe(true);
  expect(watch.isAlive(a, 20_000)).toBe(true);
  expect(watch.isAlive(a, 20_001)).toBe(false);
  expect(silentBetween(watch, 0, 30_000)).toEqual([{ owner: a, atMs: 21_000 }]);
});

test("an outage of the bus kills nobody, and silence counts anew after it (1)", () => {
  const watch = newWatch();
  watch.beat(a, 0);
  expect(silentBetween(watch, 0, 10_000)).toEqual([]);
  watch.setHearing(false, 10_000);
  expect(silentBetween(watch, 10_000, 100_000)).toEqual([]);
  expect(watch.isAlive(a, 100_000)).toBe(true);
  watch.setHearing(true, 100_000);
  expect(silentBetween(watch, 100_000, 115_000)).toEqual([]);
  expect(silentBetween(watch, 115_000, 117_000)).toEqual([{ owner: a, atMs: 116_000 }]);
});

test("a pause of this process kills nobody (1)", () => {
  const watch = newWatch();
  watch.beat(a, 0);
  expect(silentBetween(watch, 0, 5_000)).toEqual([]);
  expect(watch.takeSilent(60_000)).toEqual([]);
  expect(silentBetween(watch, 60_000, 75_000)).toEqual([]);
  expect(silentBetween(watch, 75_000, 76_000)).toEqual([{ owner: a, atMs: 76_000 }]);
});

test("hearing again what was never lost changes nothing", () => {
  const watch = newWatch();
  watch.beat(a, 0);
  silentBetween(watch, 0, 14_000);
  watch.setHearing(true, 14_000);
  expect(silentBetween(watch, 14_000, 16_000)).toEqual([{ owner: a, atMs: 16_000 }]);
});
