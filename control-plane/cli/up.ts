import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { z } from "zod";
import { systemClock, systemRandom } from "#service/clock.ts";
import { credentialsFile, natsCredentials } from "#service/nats-credentials.ts";
import { preflight } from "../preflight.ts";
import { type CliConfig, cliConfig, installFolder } from "./config.ts";
import { startNatsServer } from "./nats-server.ts";
import { findRunningSystem, type RunFile } from "./running-system.ts";
import { supervise } from "./supervisor.ts";

/** What the control plane tells its parent over the IPC channel once it answers. */
const Ready = z.object({ kind: z.literal("ready"), url: z.string(), models: z.array(z.string()) });

/** The control plane needs longer than its requests: workers are stopped after them. */
const STOP_SLACK_MS = 10_000;
const NATS_STOP_MS = 5_000;

/**
 * Runs the whole system on this machine until Ctrl-C: nats-server and the control plane as children, which in turn runs
 * the workers. Ends in the reverse order. Returns the exit code.
 */
export async function up(): Promise<number> {
  const startedMs = systemClock.monotonic();
  await preflight(process.env);
  const config = cliConfig();
  const say = (text: string): void => void process.stderr.write(`margay: ${text}\n`);
  await prepare(config);

  const ended = Promise.withResolvers<number>();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => ended.resolve(0));
  const giveUp = (): void => ended.resolve(1);

  await using stack = new AsyncDisposableStack();
  stack.defer(() => rm(config.runFile, { force: true }));

  let natsUrl = config.natsUrl;
  const own: Record<string, string> = {};
  if (natsUrl === null) {
    const nats = await startNatsServer(config, systemClock, systemRandom, say, giveUp);
    stack.defer(() => nats.stop(NATS_STOP_MS));
    natsUrl = nats.url;
    const credentials = await natsCredentials(credentialsFile(config.stateFolder), systemRandom);
    own.MARGAY_NATS_USER = "control-plane";
    own.MARGAY_NATS_PASSWORD = credentials["control-plane"];
  }

  const url = natsUrl;
  let told = false;
  const controlPlane = supervise(
    {
      name: "the control plane",
      command: process.execPath,
      argv: [join(installFolder, "control-plane", "main.ts")],
      environment: { ...config.environment, ...own, MARGAY_NATS_URL: url },
      channel: true,
      onMessage: (message) => {
        const ready = Ready.safeParse(message);
        if (!ready.success) return;
        void writeRunFile(config.runFile, { pid: process.pid, url: ready.data.url, natsUrl: url }).then(() => {
          if (told) return;
          told = true;
          say(welcome(ready.data.url, ready.data.models, systemClock.monotonic() - startedMs));
        });
      },
      // A control plane that never answered has said why; starting it again would say the same.
      restart: () => told,
    },
    systemClock,
    say,
    giveUp,
  );
  stack.defer(() => controlPlane.stop(config.drainMs + STOP_SLACK_MS));

  const code = await ended.promise;
  if (code === 0) say("stopping ...");
  return code;
}

/** Everything that can be found wrong before anything is started. */
async function prepare(config: CliConfig): Promise<void> {
  try {
    await mkdir(config.stateFolder, { recursive: true, mode: 0o700 });
    const probe = join(config.stateFolder, `.probe-${process.pid}`);
    await writeFile(probe, "");
    await rm(probe);
  } catch (cause) {
    throw new Error(`the state folder ${config.stateFolder} cannot be written: ${(cause as Error).message}`, { cause });
  }
  const running = await findRunningSystem(config.runFile);
  if (running !== null) throw new Error(`Margay is already running at ${running.url} (process ${running.pid})`);
  if (config.port !== 0) await portIsFree(config.host, config.port);
}

function portIsFree(host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", (error: NodeJS.ErrnoException) => {
      const why = error.code === "EADDRINUSE" ? "is in use" : `cannot be listened on (${error.code})`;
      reject(new Error(`port ${port} of ${host} ${why}; set MARGAY_PORT or MARGAY_HOST`));
    });
    server.listen(port, host, () => server.close(() => resolve()));
  });
}

/** Written aside and renamed: a reader sees the whole file or none. */
async function writeRunFile(path: string, content: RunFile): Promise<void> {
  await writeFile(`${path}.new`, JSON.stringify(content));
  await rename(`${path}.new`, path);
}

function welcome(url: string, models: readonly string[], tookMs: number): string {
  const body = JSON.stringify({
    model: models[0],
    temperature: 0,
    messages: [{ role: "user", content: "What is the capital of Japan?" }],
  });
  return `ready in ${(tookMs / 1000).toFixed(1)} s at ${url}

  curl ${url}/v1/chat/completions -H 'content-type: application/json' -d '${body}'

Workers start with the first request. Ctrl-C ends everything.`;
}
