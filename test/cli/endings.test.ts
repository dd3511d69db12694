import { existsSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { stream, unary } from "../support/client.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";

/** However the system ends, nothing of it stays behind. */

async function start(): Promise<{ readonly system: System; readonly up: number }> {
  const system = await startSystem({ MARGAY_BACKEND: "cpu" });
  await system.ready("prefill", 1);
  await system.ready("decode", 1);
  const { pid } = JSON.parse(await readFile(join(system.stateFolder, "run.json"), "utf8")) as { pid: number };
  return { system, up: pid };
}

/** Command lines of a process and all its descendants. */
async function family(ancestor: number): Promise<ReadonlyMap<number, string>> {
  const parents = new Map<number, number>();
  for (const name of await readdir("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const stat = await readFile(`/proc/${name}/stat`, "utf8").catch(() => "");
    const parent = /^\d+ \(.*\) \S (\d+)/s.exec(stat)?.[1];
    if (parent !== undefined) parents.set(Number(name), Number(parent));
  }
  const found = new Map<number, string>();
  const visit = async (pid: number): Promise<void> => {
    const commandLine = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    found.set(pid, commandLine.replaceAll("\0", " "));
    for (const [child, parent] of parents) if (parent === pid) await visit(child);
  };
  await visit(ancestor);
  return found;
}

/** Of the given processes those that still run. A zombie has ended. */
async function alive(processes: ReadonlyMap<number, string>): Promise<readonly string[]> {
  const left: string[] = [];
  for (const [pid, command] of processes) {
    const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
    if (/^\d+ \(.*\) [^ZX]/s.test(stat)) left.push(`${pid} ${command}`);
  }
  return left;
}

function expectWhole(processes: ReadonlyMap<number, string>): void {
  const commands = [...processes.values()];
  for (const part of [/nats-server/, /control-plane\/main/, /prefill-node/, /decode-node/])
    expect(commands.filter((command) => part.test(command))).toHaveLength(1);
}

const longStory = { model: "nano", prompt: "Tell me a story.", temperature: 0, max_tokens: 400, min_tokens: 400 };

test("Ctrl-C lets a running stream finish, then ends everything with exit code 0", async () => {
  const { system, up } = await start();
  const processes = await family(up);
  expectWhole(processes);
  const streaming = Promise.withResolvers<void>();
  const answer = stream(system.url, "/v1/completions", longStory, { onChunk: () => streaming.resolve() });
  await Promise.race([streaming.promise, answer]);
  expect(await system.stop()).toBe(0);
  expect((await answer).error).toBeNull();
  expect((await answer).usage!.completion_tokens).toBe(400);
  expect(await alive(processes)).toEqual([]);
  expect(existsSync(join(system.stateFolder, "run.json"))).toBe(false);
  expect(system.log()).not.toMatch(/did not end in time|"level":"error"/);
});

test("when `up` is killed, its children end by themselves", async () => {
  const { system, up } = await start();
  const processes = await family(up);
  expectWhole(processes);
  process.kill(up, "SIGKILL");
  await waitFor(
    "all processes to end",
    async () => ((await alive(processes)).length === 0 ? true : null),
    30_000,
    system.log,
  );
  expect(await system.stop()).toBe(-1);
});

test("a control plane that is killed is started again, and answers with workers of its own", async () => {
  const { system, up } = await start();
  const before = await family(up);
  const [victim] = [...before].find(([, command]) => /control-plane\/main/.test(command))!;
  process.kill(victim, "SIGKILL");
  await waitFor(
    "a new control plane",
    async () => {
      const { url } = JSON.parse(await readFile(join(system.stateFolder, "run.json"), "utf8")) as { url: string };
      const answer = await unary(url, "/v1/completions", { ...longStory, max_tokens: 8, min_tokens: 8 }).catch(
        () => null,
      );
      return answer?.usage?.completion_tokens === 8 ? true : null;
    },
    60_000,
    system.log,
  );
  expect(system.log()).toMatch(/margay: the control plane was ended by SIGKILL; starting it again in \d+ ms/);
  const after = await family(up);
  await waitFor(
    "the workers of the old one to end",
    async () => {
      const old = new Map([...before].filter(([, command]) => /-node/.test(command)));
      return (await alive(old)).length === 0 ? true : null;
    },
    30_000,
    system.log,
  );
  expect(await system.stop()).toBe(0);
  expect(await alive(after)).toEqual([]);
});

test("when its terminal is gone, `up` still starts a killed control plane again, and ends in order", async () => {
  const { system, up } = await start();
  const before = await family(up);
  const [victim] = [...before].find(([, command]) => /control-plane\/main/.test(command))!;
  system.closeOutput();
  process.kill(victim, "SIGKILL");
  await waitFor(
    "a new control plane",
    async () => {
      const { url } = JSON.parse(await readFile(join(system.stateFolder, "run.json"), "utf8")) as { url: string };
      return (await fetch(`${url}/livez`).catch(() => null))?.ok ?? null;
    },
    30_000,
  );
  const after = await family(up);
  expect(await system.stop()).toBe(0);
  await waitFor(
    "all to end",
    async () => ((await alive(new Map([...before, ...after]))).length === 0 ? true : null),
    30_000,
  );
});
