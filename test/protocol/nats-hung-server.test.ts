import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { silentObserver } from "#protocol/bus/bus.ts";
import { connectNats } from "#protocol/bus/nats-bus.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { NatsServer } from "../support/nats-server.ts";

/** Passes connections on to a server; while it is mute it accepts them and says nothing, as a server that hangs does. */
class Door implements AsyncDisposable {
  readonly #server = createServer((client) => this.#accept(client));
  readonly #port: number;
  readonly #open: Socket[] = [];
  /** When each connection came, milliseconds. */
  readonly came: number[] = [];
  mute = false;

  constructor(port: number) {
    this.#port = port;
  }

  async listen(): Promise<number> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    return (this.#server.address() as AddressInfo).port;
  }

  cut(): void {
    for (const socket of this.#open.splice(0)) socket.destroy();
  }

  #accept(client: Socket): void {
    this.came.push(performance.now());
    client.on("error", () => {});
    this.#open.push(client);
    if (this.mute) return;
    const server = connect(this.#port, "127.0.0.1");
    server.on("error", () => client.destroy());
    this.#open.push(server);
    client.pipe(server).pipe(client);
    client.once("close", () => server.destroy());
    server.once("close", () => client.destroy());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    this.#server.close();
  }
}

let server: NatsServer;
beforeAll(async () => {
  server = await NatsServer.start();
});
afterAll(() => server[Symbol.asyncDispose]());

test("a server that accepts and says nothing is dialled ever less often, and found when it speaks again", async () => {
  await using door = new Door(Number(new URL(server.url).port));
  const port = await door.listen();
  const bus = await connectNats({
    url: `nats://127.0.0.1:${port}`,
    user: "control-plane",
    password: server.credentials["control-plane"],
    ...{ tls: null, role: "control-plane", name: "test", connectTimeoutMs: 10_000 },
    ...{ timers: systemClock, random: systemRandom, observer: silentObserver },
  });
  door.mute = true;
  door.cut();
  while (door.came.length < 3) await systemClock.sleep(10);
  door.mute = false;
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
