import { expect, test } from "vitest";
import { systemClock } from "#service/clock.ts";
import { Tracer } from "#service/tracer.ts";

/** Native threads that were in `forward` from 5 to 7 ms after the epoch. */
function fakeNative() {
  const calls: string[] = [];
  return {
    calls,
    startTrace: () => void calls.push("start"),
    takeTrace() {
      calls.push("take");
      return { names: ["forward"], threads: ["margay-engine"], spans: Float64Array.of(0, 0, 5, 2) };
    },
  };
}

test("a recording holds what the JavaScript thread did meanwhile, then what native threads did", async () => {
  const native = fakeNative();
  const tracer = new Tracer(native, systemClock);
  expect(tracer.time("plan", () => "before")).toBe("before");
  const end = Promise.withResolvers<void>();
  const recording = tracer.record(end.promise);
  const beforeMs = performance.timeOrigin + performance.now();
  tracer.time("plan", () => tracer.time("send tokens", () => {}));
  const afterMs = performance.timeOrigin + performance.now();
  end.resolve();
  const spans = (await recording)!;
  expect(spans.map(({ name, thread }) => `${name} on ${thread}`)).toEqual([
    "send tokens on JavaScript",
    "plan on JavaScript",
    "forward on margay-engine",
  ]);
  expect(spans[2]).toEqual({ name: "forward", thread: "margay-engine", startMs: 5, ms: 2 });
  const [inner, outer] = spans;
  expect(outer!.startMs).toBeGreaterThanOrEqual(beforeMs);
  expect(inner!.startMs).toBeGreaterThanOrEqual(outer!.startMs);
  expect(outer!.startMs + outer!.ms).toBeLessThanOrEqual(afterMs + 0.01);
  tracer.time("plan", () => {});
  expect(spans).toHaveLength(3);
});

test("a second recording is refused while one runs, and possible afterwards", async () => {
  const native = fakeNative();
  const tracer = new Tracer(native, systemClock);
  const end = Promise.withResolvers<void>();
  const first = tracer.record(end.promise);
  expect(await tracer.record(Promise.resolve())).toBeNull();
  end.resolve();
  await first;
  expect(await tracer.record(Promise.resolve())).not.toBeNull();
  expect(native.calls).toEqual(["start", "take", "start", "take"]);
});

test("work that throws is noted, and throws", async () => {
  const tracer = new Tracer(fakeNative(), systemClock);
  const end = Promise.withResolvers<void>();
  const recording = tracer.record(end.promise);
  expect(() =>
    tracer.time("plan", () => {
      throw new Error("no plan");
    }),
  ).toThrow("no plan");
  end.resolve();
  expect((await recording)!.map(({ name }) => name)).toEqual(["plan", "forward"]);
});
