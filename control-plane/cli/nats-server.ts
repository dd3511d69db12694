import { existsSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { delimiter, join } from "node:path";
import type { Clock, Random } from "#service/clock.ts";
import { natsConfig } from "#service/nats-config.ts";
import { credentialsFile, natsCredentials } from "#service/nats-credentials.ts";
import { type CliConfig, installFolder } from "./config.ts";
import { supervise } from "./supervisor.ts";

const START_MS = 10_000;

/**
 * Runs nats-server for this machine: JetStream on, loopback only, data under the state folder, one user per role.
 * Ready when it accepts connections. Its own log is kept beside its data.
 */
export async function startNatsServer(
  config: CliConfig,
  clock: Clock,
  random: Random,
  say: (text: string) => void,
  onGiveUp: () => void,
): Promise<{ readonly url: string; stop(graceMs: number): Promise<void> }> {
  const program = findProgram("nats-server", [join(installFolder, ".margay", "bin"), ...config.path.split(delimiter)]);
  if (program === null)
    throw new Error("there is no nats-server: run `npm run setup`, put one on PATH, or set MARGAY_NATS_URL");
  const folder = join(config.stateFolder, "nats");
  const pidFile = join(folder, "nats-server.pid");
  await mkdir(join(folder, "ports"), { recursive: true });
  await endLeftover(pidFile);
  // The port is chosen here and not by the server, so that a restarted server is found where it was.
  const port = await freePort();
  const configFile = join(folder, "server.conf");
  await writeFile(
    configFile,
    natsConfig({
      host: "127.0.0.1",
      port,
      portsFolder: join(folder, "ports"),
      storeFolder: join(folder, "jetstream"),
      credentials: await natsCredentials(credentialsFile(config.stateFolder), random),
    }),
    { mode: 0o600 },
  );
  const argv = ["--config", configFile, "--log", join(folder, "server.log"), "--pid", pidFile];
  // Where it is to be had, the kernel ends the server when this process is killed without a chance to do it itself.
  const setpriv = findProgram("setpriv", config.path.split(delimiter));
  const server = supervise(
    {
      name: "nats-server",
      command: setpriv ?? program,
      argv: setpriv === null ? argv : ["--pdeathsig", "TERM", program, ...argv],
      // One scheduler of Go is plenty for the messages of one machine; several wake each other for every message.
      environment: { PATH: config.path, GOMAXPROCS: "1" },
      channel: false,
    },
    clock,
    say,
    onGiveUp,
  );
  const endMs = clock.monotonic() + START_MS;
  while (!(await accepts(port))) {
    if (clock.monotonic() > endMs) {
      await server.stop(1_000);
      throw new Error(`nats-server did not start within ${START_MS / 1000} s; see ${join(folder, "server.log")}`);
    }
    await clock.sleep(25);
  }
  return { url: `nats://127.0.0.1:${port}`, stop: (graceMs) => server.stop(graceMs) };
}

function findProgram(name: string, folders: readonly string[]): string | null {
  for (const folder of folders) {
    if (folder !== "" && existsSync(join(folder, name))) return join(folder, name);
  }
  return null;
}

/** Ends a server that an earlier, killed run left behind on the same data. */
async function endLeftover(pidFile: string): Promise<void> {
  const pid = Number(await readFile(pidFile, "utf8").catch(() => ""));
  if (!Number.isInteger(pid) || pid <= 1) return;
  const commandLine = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
  if (commandLine.includes("nats-server") && commandLine.includes(pidFile)) process.kill(pid, "SIGTERM");
  await rm(pidFile, { force: true });
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() =>
        address !== null && typeof address === "object" ? resolve(address.port) : reject(new Error("no port")),
      );
    });
  });
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}
