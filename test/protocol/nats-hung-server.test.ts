import { afterAll, beforeAll, expect, test } from "vitest";
import { silentObserver } from "#protocol/bus/bus.ts";
import { connectNats } from "#protocol/bus/nats-bus.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { NatsDoor } from "../support/nats-door.ts";
import { NatsServer } from "../support/nats-server.ts";

let server: NatsServer;
beforeAll(async () => {
  server = await NatsServer.start();
});
afterAll(() => server[Symbol.asyncDispose]());

test("a server that accepts and says nothing is dialled ever less often, and found when it speaks again", async () => {
  let mute = false;
  await using door = await NatsDoor.open(server.url, async () => !mute);
  const bus = await connectNats({
    url: door.url,
    user: "control-plane",
    password: server.credentials["control-plane"],
    ...{ tls: null, role: "control-plane", name: "test", connectTimeoutMs: 10_000 },
    ...{ timers: systemClock, random: systemRandom, observer: silentObserver },
  });
  mute = true;
  door.cut();
  while (door.came.length < 3) await systemClock.sleep(10);
  mute = false;
  const [, first, second] = door.came;
  // The first attempt has two seconds, the second four.
  while (door.came.length < 4) await systemClock.sleep(10);
  const third = door.came[3]!;
  expect(third - second!).toBeGreaterThan(1.5 * 2_000);
  expect(third - second!).toBeGreaterThan(second! - first!);
  while (bus.state !== "connected") await systemClock.sleep(10);
  await bus.flush(10_000);
  await bus.close(1_000);
}, 60_000);
