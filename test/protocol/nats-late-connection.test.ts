import { afterAll, beforeAll, expect, test } from "vitest";
import { z } from "zod";
import type { Bus } from "#protocol/bus/bus.ts";
import { silentObserver } from "#protocol/bus/bus.ts";
import { connectNats } from "#protocol/bus/nats-bus.ts";
import type { RankId } from "#protocol/ids.ts";
import { subjects } from "#protocol/subjects.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { NatsDoor } from "../support/nats-door.ts";
import { NatsServer } from "../support/nats-server.ts";

/** A crowded machine: an attempt to connect takes longer than it may, and is answered when another one has succeeded. */

const Numbered = z.strictObject({ number: z.int(), filling: z.string() });
const SUBJECT = subjects.beat("w1-r0" as RankId);
/** Longer than an attempt to connect may take. */
const LATE_MS = 3_000;
/** A client that does not say who it is, is cut off by the server after two seconds. */
const CUT_OFF_MS = 2_000;

let server: NatsServer;
beforeAll(async () => {
  server = await NatsServer.start();
});
afterAll(() => server[Symbol.asyncDispose]());

test("a connection that opens after its time is nobody's: messages go on to come once, whole and in order", async () => {
  await using door = await NatsDoor.open(server.url, async (number) => {
    if (number === 2) await systemClock.sleep(LATE_MS);
    return true;
  });
  const rejected: string[] = [];
  const states: string[] = [];
  const hearing: Bus = await connectNats({
    url: door.url,
    user: "control-plane",
    password: server.credentials["control-plane"],
    ...{ tls: null, role: "control-plane", name: "test", connectTimeoutMs: 10_000 },
    ...{ timers: systemClock, random: systemRandom },
    observer: {
      ...silentObserver,
      onRejected: (_subject, detail) => rejected.push(detail),
      onState: (state) => states.push(state),
    },
  });
  const sending = await server.connect("prefill");
  const heard: number[] = [];
  hearing.subscribe(subjects.beats(), Numbered, ({ number, filling }) => {
    expect(filling.length).toBe(1 + ((number * 37) % 3_000));
    heard.push(number);
  });
  await hearing.flush(5_000);
  let number = 0;
  const stream = systemClock.every(1, () => {
    for (let i = 0; i < 5; i++) {
      const filling = "x".repeat(1 + ((number * 37) % 3_000));
      sending.publish(SUBJECT, Numbered, { number: number++, filling });
    }
  });
  while (heard.length < 100) await systemClock.sleep(10);
  door.cut();
  while (door.came.length < 3 || hearing.state !== "connected") await systemClock.sleep(10);
  // The late one has opened meanwhile or will; after this the server has cut it off.
  await systemClock.sleep(LATE_MS + CUT_OFF_MS);
  stream.cancel();
  const before = heard.length;
  sending.publish(SUBJECT, Numbered, { number, filling: "x".repeat(1 + ((number * 37) % 3_000)) });
  while (heard.length === before || heard.at(-1) !== number) await systemClock.sleep(10);

  expect(rejected).toEqual([]);
  expect(states).toEqual(["disconnected", "connected"]);
  expect(door.came.length).toBe(3);
  for (let i = 1; i < heard.length; i++) expect(heard[i]).toBeGreaterThan(heard[i - 1]!);
  await sending.close(1_000);
  await hearing.close(1_000);
}, 60_000);
