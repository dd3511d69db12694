import { describe, expect, test } from "vitest";
import {
  type GapHistogram,
  idleVerdict,
  keepAliveOf,
  NO_GAPS,
  withGap,
} from "../../control-plane/scaling/keep-alive.ts";

const rules = { fixedMs: 300_000, learned: true };
const COLD_MS = 1_000;

function gapsOf(lengths: readonly number[]): GapHistogram {
  return lengths.reduce((gaps, ms) => withGap(gaps, ms), NO_GAPS);
}

const of = (lengths: readonly number[], changes: Partial<typeof rules> = {}) =>
  keepAliveOf({ ...rules, ...changes }, gapsOf(lengths), COLD_MS);

/** Equally spread on a logarithmic scale. */
const anywhere = Array.from({ length: 200 }, (_, i) => 1_100 * 1.03 ** (i % 190));

describe("how long workers of an idle model stay", () => {
  test("for as long as set, until enough pauses were seen", () => {
    const few = of(Array.from({ length: 9 }, () => 20_000));
    expect(few).toMatchObject({ lingerMs: 300_000, wakeMs: null, reason: expect.stringContaining("9 pauses") });
    expect(of([])).toMatchObject({ lingerMs: 300_000 });
  });

  test("a little longer than nearly all pauses are, once those are known", () => {
    const short = of(Array.from({ length: 50 }, (_, i) => 20_000 + 100 * i));
    expect(short.lingerMs).toBeGreaterThan(25_000);
    expect(short.lingerMs).toBeLessThan(36_000);
    expect(short.wakeMs).toBeNull();
    const long = of([...Array.from({ length: 50 }, () => 4_000), ...Array.from({ length: 50 }, () => 500_000)]);
    expect(long.lingerMs).toBeGreaterThan(500_000);
  });

  test("never so short that starts cost more than staying", () => {
    expect(of(Array.from({ length: 50 }, () => 1_200)).lingerMs).toBe(10 * COLD_MS);
  });

  test("as set, where pauses are of any length, or too long, or nothing is to be learned", () => {
    expect(of(anywhere)).toMatchObject({ lingerMs: 300_000, reason: expect.stringContaining("any length") });
    expect(of(Array.from({ length: 50 }, () => 30 * 3_600_000))).toMatchObject({ lingerMs: 300_000 });
    expect(
      of(
        Array.from({ length: 50 }, () => 20_000),
        { learned: false },
      ),
    ).toMatchObject({ lingerMs: 300_000 });
  });

  test("requests that come by the hour: workers go at once and are back shortly before the next", () => {
    const hourly = of(Array.from({ length: 30 }, (_, i) => 3_600_000 + 1_000 * i));
    expect(hourly.lingerMs).toBe(10 * COLD_MS);
    expect(hourly.wakeMs!).toBeGreaterThan(2_500_000);
    expect(hourly.wakeMs!).toBeLessThan(3_600_000 - COLD_MS);
    expect(hourly.untilMs).toBeGreaterThan(3_600_000);
    const at = (ms: number) => idleVerdict(hourly, ms);
    expect([at(5_000), at(60_000), at(3_590_000), at(6_000_000)]).toEqual(["stay", "go", "wake", "go"]);
  });

  test("a change of habit is learned: old pauses count ever less", () => {
    const old = Array.from({ length: 2_000 }, () => 200_000);
    const now = Array.from({ length: 12_000 }, () => 15_000);
    expect(of([...old, ...now]).lingerMs).toBeLessThan(30_000);
  });
});
