import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { type Bus, type BusObserver, silentObserver } from "#protocol/bus/bus.ts";
import { connectNats } from "#protocol/bus/nats-bus.ts";
import { BUS_ROLES, type BusRole } from "#protocol/permissions.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { type NatsCredentials, natsConfig } from "#service/nats-config.ts";

const repository = fileURLToPath(new URL("../..", import.meta.url));
const START_MS = 20_000;

/** nats-server on PATH, else the one the setup put into `.margay/bin`. */
export function natsBinary(): string {
  try {
    return execFileSync("sh", ["-c", "command -v nats-server"], { encoding: "utf8" }).trim();
  } catch {
    const own = join(repository, ".margay/bin/nats-server");
    if (existsSync(own)) return own;
    throw new Error("no nats-server on PATH or in .margay/bin: run `npm run setup`");
  }
}

/** A real NATS server under the generated configuration, on a port of its own, in a folder that goes with it. */
export class NatsServer implements AsyncDisposable {
  readonly credentials: NatsCredentials;
  readonly folder: string;
  readonly #further: string;
  #child: ChildProcess | null = null;
  #port = 0;

  private constructor(folder: string, credentials: NatsCredentials, further: string) {
    this.#further = further;
    this.folder = folder;
    this.credentials = credentials;
  }

  /** `further`: lines of configuration beside the generated ones. */
  static async start(further = ""): Promise<NatsServer> {
    const credentials = Object.fromEntries(BUS_ROLES.map((role) => [role, systemRandom.hex(12)])) as NatsCredentials;
    const server = new NatsServer(await mkdtemp(join(tmpdir(), "margay-nats-")), credentials, further);
    await server.up();
    return server;
  }

  get url(): string {
    return `nats://127.0.0.1:${this.#port}`;
  }

  get pid(): number {
    if (this.#child?.pid === undefined) throw new Error("the NATS server is not running");
    return this.#child.pid;
  }

  /** Starts the server, on the port it had before if there was one. */
  async up(): Promise<void> {
    const { folder, credentials } = this;
    const portsFolder = join(folder, "ports");
    await rm(portsFolder, { recursive: true, force: true });
    await mkdir(portsFolder, { recursive: true });
    const config = natsConfig({
      host: "127.0.0.1",
      port: this.#port,
      portsFolder,
      storeFolder: join(folder, "jetstream"),
      credentials,
    });
    await writeFile(join(folder, "nats.conf"), config + this.#further, { mode: 0o600 });
    const child = spawn(natsBinary(), ["--config", join(folder, "nats.conf")], { stdio: ["ignore", "ignore", "pipe"] });
    this.#child = child;
    let log = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      log = (log + text).slice(-4000);
    });
    const deadline = systemClock.now() + START_MS;
    while (!log.includes("Server is ready") || !(await this.#readPort(portsFolder))) {
      if (child.exitCode !== null || systemClock.now() > deadline)
        throw new Error(`nats-server did not start:\n${log}`);
      await sleep(10);
    }
  }

  /** Ends the server: at once (`SIGKILL`) or in order. */
  async down(signal: "SIGKILL" | "SIGTERM" = "SIGKILL"): Promise<void> {
    const child = this.#child;
    this.#child = null;
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    await gone;
  }

  /** Stops the server without ending it: connections stay open and nothing answers. */
  freeze(): void {
    process.kill(this.pid, "SIGSTOP");
  }

  thaw(): void {
    process.kill(this.pid, "SIGCONT");
  }

  /** A bus of this role's user. */
  connect(role: BusRole, observer: BusObserver = silentObserver): Promise<Bus> {
    return connectNats({
      url: this.url,
      user: role,
      password: this.credentials[role],
      tls: null,
      role,
      name: `test ${role}`,
      connectTimeoutMs: 5_000,
      timers: systemClock,
      random: systemRandom,
      observer,
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.down();
    await rm(this.folder, { recursive: true, force: true });
  }

  async #readPort(portsFolder: string): Promise<boolean> {
    const file = (await readdir(portsFolder)).find((name) => name.endsWith(".ports"));
    if (file === undefined) return false;
    try {
      const ports = JSON.parse(await readFile(join(portsFolder, file), "utf8")) as { nats: string[] };
      this.#port = Number(new URL(ports.nats[0]!).port);
      return true;
    } catch {
      return false;
    }
  }
}
