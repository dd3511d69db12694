import { expect, test } from "vitest";
import { FakeClock, fakeRandom } from "./fake-clock.ts";

test("timers fire in due order, at their due time", async () => {
  const clock = new FakeClock(1000);
  const seen: string[] = [];
  clock.after(20, () => seen.push(`b@${clock.now()}`));
  clock.after(10, () => seen.push(`a@${clock.now()}`));
  clock.after(20, () => seen.push(`c@${clock.now()}`));
  await clock.advance(25);
  expect(seen).toEqual(["a@1010", "b@1020", "c@1020"]);
  expect(clock.now()).toBe(1025);
});

test("a promise chain woken by one timer may set the next within the same advance", async () => {
  const clock = new FakeClock();
  let laps = 0;
  const run = async () => {
    while (laps < 5) {
      await clock.sleep(10);
      laps++;
    }
  };
  const done = run();
  await clock.advance(49);
  expect(laps).toBe(4);
  await clock.advance(1);
  await done;
});

test("every repeats until cancelled, also from within its own callback", async () => {
  const clock = new FakeClock();
  let count = 0;
  const timer = clock.every(10, () => {
    if (++count === 3) timer.cancel();
  });
  await clock.advance(100);
  expect(count).toBe(3);
  expect(clock.pending).toBe(0);
});

test("an aborted sleep rejects and leaves no timer", async () => {
  const clock = new FakeClock();
  const abort = new AbortController();
  const sleep = clock.sleep(10, abort.signal);
  abort.abort(new Error("enough"));
  await expect(sleep).rejects.toThrow("enough");
  expect(clock.pending).toBe(0);
});

test("randomness repeats with its seed", () => {
  const [a, b, c] = [fakeRandom(7), fakeRandom(7), fakeRandom(8)];
  expect([a.hex(4), a.uniform(), a.seed()]).toEqual([b.hex(4), b.uniform(), b.seed()]);
  expect(a.hex(8)).not.toBe(c.hex(8));
  expect(Number.isSafeInteger(a.seed())).toBe(true);
});
