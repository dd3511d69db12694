import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { RankStatus } from "#protocol/operator.ts";
import { OperatorStatus } from "./operator-status.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** A whole system of real processes on random ports, in a state folder of its own. */
export interface System {
  readonly url: string;
  readonly log: () => string;
  readonly stateFolder: string;
  /** Of `margay up`, the ancestor of all other processes. */
  readonly pid: number;
  /** Ranks as the control plane sees them. */
  ranks(): Promise<readonly RankStatus[]>;
  /** Waits until this many ranks of a role are ready. */
  ready(role: "prefill" | "decode", count: number, timeoutMs?: number): Promise<readonly RankStatus[]>;
  /** Samples of one metric of a process (`GET URL/metrics`), labels as Prometheus writes them. */
  metric(processUrl: string, name: string): Promise<ReadonlyMap<string, number>>;
  /** Nobody reads what it writes any more. */
  closeOutput(): void;
  /** Ends it as Ctrl-C would. Returns the exit code. */
  stop(): Promise<number>;
}

/**
 * Starts `margay up` with the given settings. Prefill and decode workers start with the system unless the settings say
 * otherwise. Throws with the log when it is not ready within two minutes.
 */
export async function startSystem(settings: Readonly<Record<string, string>> = {}): Promise<System> {
  const stateFolder = await mkdtemp(join(tmpdir(), "margay-test-"));
  const environment: Record<string, string> = {
    PATH: process.env.PATH ?? "",
    HOME: process.env.HOME ?? "",
    MARGAY_PORT: "0",
    MARGAY_STATE_DIR: stateFolder,
    MARGAY_PREFILL: "1..1",
    MARGAY_DECODE: "1..1",
    MARGAY_THREADS: "1",
    MARGAY_LATENT_NORM_EPS: "1e-6",
    MARGAY_DRAIN_SECONDS: "10",
    ...settings,
  };
  const natsServer = join(root, ".margay", "bin");
  environment.PATH = `${environment.PATH}:${natsServer}`;
  let log = "";
  const child = spawn(process.execPath, ["control-plane/cli/margay.ts", "up"], {
    cwd: root,
    env: environment,
    stdio: ["ignore", "pipe", "pipe"],
  });
  child.stdout.on("data", (bytes: Buffer) => (log += bytes.toString()));
  child.stderr.on("data", (bytes: Buffer) => (log += bytes.toString()));
  const exited = new Promise<number>((resolve) => child.once("exit", (code) => resolve(code ?? -1)));

  const url = await waitFor(
    "the system to start",
    async () => {
      if (child.exitCode !== null) throw new Error(`margay up ended with code ${child.exitCode}\n${log}`);
      const run = await readFile(join(stateFolder, "run.json"), "utf8").catch(() => null);
      return run === null ? null : (JSON.parse(run) as { url: string }).url;
    },
    120_000,
    () => log,
  );

  const operator = new OperatorStatus(stateFolder);
  const status = async (): Promise<readonly RankStatus[]> => (await operator.ask()).ranks;

  return {
    url,
    stateFolder,
    pid: child.pid!,
    log: () => log,
    ranks: status,
    closeOutput() {
      child.stdout.destroy();
      child.stderr.destroy();
    },
    ready(role, count, timeoutMs = 120_000) {
      return waitFor(
        `${count} ready ${role} ranks`,
        async () => {
          // A control plane that is late with its answer is asked again.
          const found = (await status().catch(() => [])).filter((rank) => rank.role === role && rank.state === "ready");
          return found.length >= count ? found : null;
        },
        timeoutMs,
        () => log,
      );
    },
    async metric(processUrl, name) {
      const text = await (await fetch(`${processUrl}/metrics`)).text();
      const samples = new Map<string, number>();
      for (const line of text.split("\n")) {
        const match = /^([a-zA-Z_:]+)(\{.*\})? (\S+)$/.exec(line);
        if (match?.[1] === name) samples.set(match[2] ?? "", Number(match[3]));
      }
      return samples;
    },
    async stop() {
      await operator.close();
      if (child.exitCode === null && child.signalCode === null) child.kill("SIGINT");
      const code = await deadline(exited, 120_000, () => `margay up did not end\n${log}`).catch((error: unknown) => {
        child.kill("SIGKILL");
        throw error;
      });
      await rm(stateFolder, { recursive: true, force: true });
      return code;
    },
  };
}

/** Runs one `margay` command to its end. */
export function runCli(
  argv: readonly string[],
  environment: Readonly<Record<string, string>>,
): Promise<{ readonly code: number; readonly stdout: string; readonly stderr: string }> {
  return new Promise((resolve, reject) => {
    const child: ChildProcess = spawn(process.execPath, ["control-plane/cli/margay.ts", ...argv], {
      cwd: root,
      env: { ...environment },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let stdout = "";
    let stderr = "";
    child.stdout?.on("data", (bytes: Buffer) => (stdout += bytes.toString()));
    child.stderr?.on("data", (bytes: Buffer) => (stderr += bytes.toString()));
    child.once("error", reject);
    child.once("close", (code) => resolve({ code: code ?? -1, stdout, stderr }));
  });
}

/** Asks again and again until there is an answer. Throws when there is none within `timeoutMs`. */
export async function waitFor<T>(
  what: string,
  probe: () => Promise<T | null> | T | null,
  timeoutMs: number,
  details: () => string = () => "",
): Promise<T> {
  const end = performance.now() + timeoutMs;
  for (;;) {
    const answer = await probe();
    if (answer !== null) return answer;
    if (performance.now() > end) throw new Error(`waited ${timeoutMs} ms in vain for ${what}\n${details()}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** `promise`, or an error after `timeoutMs`. */
export function deadline<T>(promise: Promise<T>, timeoutMs: number, message: () => string): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(message())), timeoutMs);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
