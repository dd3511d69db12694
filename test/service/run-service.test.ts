import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test, vi } from "vitest";

const script = fileURLToPath(new URL("toy-service.ts", import.meta.url));

class Toy {
  readonly child: ChildProcess;
  readonly exited: Promise<number | null>;
  out = "";
  err = "";
  readonly #watchers = new Set<() => void>();

  constructor(behaviour: string, channel = false, environment: Readonly<Record<string, string>> = {}) {
    this.child = spawn(process.execPath, [script, behaviour], {
      env: { ...process.env, ...environment },
      stdio: ["ignore", "pipe", "pipe", ...(channel ? (["ipc"] as const) : [])],
    });
    this.child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      this.out += text;
      for (const watcher of this.#watchers) watcher();
    });
    this.child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.err += text;
    });
    // Not `close`, which does not come when this side has closed the channel.
    const exit = new Promise<number | null>((resolve) => this.child.once("exit", (code) => resolve(code)));
    const ends = [this.child.stdout, this.child.stderr].map(
      (stream) => new Promise((resolve) => stream?.once("end", resolve)),
    );
    this.exited = Promise.all([exit, ...ends]).then(([code]) => code as number | null);
  }

  /** Resolves when the toy has said `text`. */
  said(text: string): Promise<void> {
    return new Promise((resolve) => {
      const check = () => {
        if (!this.out.includes(text)) return;
        this.#watchers.delete(check);
        resolve();
      };
      this.#watchers.add(check);
      check();
    });
  }
}

test.each(["SIGTERM", "SIGINT"] as const)("%s drains within the configured time and exits with 0", async (signal) => {
  const toy = new Toy("normal");
  await toy.said("started");
  toy.child.kill(signal);
  expect(await toy.exited).toBe(0);
  expect(toy.out).toBe("started\ndraining 500\ndrained\ndisposed\n");
  expect(toy.err).toContain(`"reason":"${signal}"`);
});

test("what a process compiled for its start is there for the next one while it still runs", async () => {
  const folder = mkdtempSync(join(tmpdir(), "compiled-"));
  const toy = new Toy("normal", false, { NODE_COMPILE_CACHE: folder });
  const files = () => readdirSync(folder, { recursive: true, withFileTypes: true }).filter((one) => one.isFile());
  try {
    await toy.said("started");
    await vi.waitFor(() => expect(files().length).toBeGreaterThan(10), { timeout: 30_000, interval: 100 });
    expect(toy.child.exitCode).toBeNull();
  } finally {
    toy.child.kill("SIGTERM");
    await toy.exited;
    rmSync(folder, { recursive: true });
  }
});

test("a service may ask for its own end", async () => {
  const toy = new Toy("stops-itself");
  expect(await toy.exited).toBe(0);
  expect(toy.out).toContain("drained");
  expect(toy.err).toContain("asked over the bus");
});

test("the end of the parent drains it", async () => {
  const toy = new Toy("normal", true);
  const ready = new Promise((resolve) => toy.child.once("message", resolve));
  expect(await ready).toEqual({ kind: "ready" });
  toy.child.disconnect();
  expect(await toy.exited).toBe(0);
  expect(toy.out).toContain("drained");
  expect(toy.err).toContain("the parent process is gone");
});

test("a second signal ends it at once", async () => {
  const toy = new Toy("never-drains");
  await toy.said("started");
  toy.child.kill("SIGINT");
  await toy.said("draining");
  toy.child.kill("SIGINT");
  expect(await toy.exited).toBe(1);
});

test("work that does not end is left behind after the deadline and its slack", async () => {
  const toy = new Toy("never-drains");
  await toy.said("started");
  toy.child.kill("SIGTERM");
  expect(await toy.exited).toBe(1);
  expect(toy.err).toContain("the work did not end in time");
});

test("a stop while it is still being created ends the wait, cleanly", async () => {
  const toy = new Toy("slow-create");
  await toy.said("creating");
  toy.child.kill("SIGTERM");
  expect(await toy.exited).toBe(0);
  expect(toy.out).toBe("creating\n");
});

test.each([
  ["bad-config", "toy: MARGAY_PORT=abc: must be a whole number\n", ""],
  ["bad-create", "toy: The model folder /nowhere does not exist.\n", ""],
  ["bad-start", "toy: Port 1 is in use.\n", "disposed\n"],
])("%s is one sentence and exit 1", async (behaviour, sentence, out) => {
  const toy = new Toy(behaviour);
  expect(await toy.exited).toBe(1);
  expect(toy.err).toBe(sentence);
  expect(toy.out).toBe(out);
});

test("at level debug the stack of a failed start is shown", async () => {
  const toy = new Toy("bad-start-debug");
  expect(await toy.exited).toBe(1);
  expect(toy.err).toContain("toy: Port 1 is in use.\n");
  expect(toy.err).toContain("toy-service.ts");
});

test.each([
  ["stray-rejection", "nobody waits"],
  ["stray-exception", "JSON"],
])("a %s is logged and ends the process with 1", async (behaviour, words) => {
  const toy = new Toy(behaviour);
  expect(await toy.exited).toBe(1);
  expect(toy.err).toContain(words);
  expect(toy.out).not.toContain("draining");
});

test("a service that cannot go on is disposed without a drain and ends with 1", async () => {
  const toy = new Toy("fails-later");
  expect(await toy.exited).toBe(1);
  expect(toy.out).toBe("started\ndisposed\n");
  expect(toy.err).toContain("The engine thread ended.");
});

test.each(["fails-draining", "bad-drain"])("%s ends with 1", async (behaviour) => {
  const toy = new Toy(behaviour);
  await toy.said("started");
  toy.child.kill("SIGTERM");
  expect(await toy.exited).toBe(1);
  expect(toy.err).toMatch(/The engine thread ended|could not be handed back/);
});
