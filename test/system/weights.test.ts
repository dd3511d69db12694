import { readFile, stat } from "node:fs/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { RankStatus } from "#protocol/operator.ts";
import { unary } from "../support/client.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";

/** The workers of one host hold the weights once, and pack them once. */

let system: System;

beforeAll(async () => {
  // `ref` keeps its weights in fp32: larger than anything else that a worker holds.
  system = await startSystem({ MARGAY_BACKEND: "ref" });
  await system.ready("prefill", 1);
  await system.ready("decode", 1);
  // Every weight is touched once.
  const prompt = Array.from({ length: 200 }, (_, i) => `word${i}`).join(" ");
  expect((await unary(system.url, "/v1/completions", { model: "nano", prompt, max_tokens: 16 })).error).toBeNull();
});
afterAll(async () => expect(await system.stop()).toBe(0));

interface Mapping {
  readonly path: string;
  readonly inode: number;
  readonly kib: Map<string, number>;
}

async function mappings(pid: number): Promise<readonly Mapping[]> {
  const found: Mapping[] = [];
  for (const line of (await readFile(`/proc/${pid}/smaps`, "utf8")).split("\n")) {
    const head = /^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+)\s*(.*)$/.exec(line);
    const field = /^(\w+):\s+(\d+) kB$/.exec(line);
    if (head) found.push({ path: head[2]!, inode: Number(head[1]), kib: new Map() });
    else if (field) found.at(-1)?.kib.set(field[1]!, Number(field[2]));
  }
  return found;
}

async function weightsOf(rank: RankStatus): Promise<readonly Mapping[]> {
  return (await mappings(rank.pid)).filter(({ path }) => path.endsWith(".weights"));
}

const total = (of: readonly Mapping[], field: string) => of.reduce((sum, { kib }) => sum + kib.get(field)!, 0);

test("P and D map the same packed file and together hold one copy", async () => {
  const prefill = (await system.ready("prefill", 1))[0]!;
  const decode = (await system.ready("decode", 1))[0]!;
  const [mine, its] = [await weightsOf(prefill), await weightsOf(decode)];
  expect(mine.length).toBeGreaterThan(0);
  expect(mine[0]!.path.startsWith(system.stateFolder)).toBe(true);
  expect(new Set([...mine, ...its].map(({ inode }) => inode)).size).toBe(1);
  const fileKib = (await stat(mine[0]!.path)).size / 1024;
  const both = [...mine, ...its];
  // Pss counts a page that n processes share as 1/n of a page in each.
  expect(total(both, "Pss")).toBeGreaterThan(0.5 * fileKib);
  expect(total(both, "Pss")).toBeLessThan(1.05 * fileKib + 64);
  expect(total(both, "Anonymous")).toBe(0);
  for (const { pid } of [prefill, decode]) {
    const privately = (await mappings(pid)).filter(({ inode }) => inode === 0);
    expect(Math.max(...privately.map(({ kib }) => kib.get("Private_Dirty")!))).toBeLessThan(0.9 * fileKib);
  }
});

test("a worker that starts later uses the file that is there", async () => {
  const decode = (await system.ready("decode", 1))[0]!;
  const { path, inode } = (await weightsOf(decode))[0]!;
  const before = await stat(path);
  const old = (await system.ready("prefill", 1))[0]!;
  process.kill(old.pid, "SIGKILL");
  const fresh = await waitFor(
    "another prefill worker",
    async () =>
      (await system.ranks()).find((r) => r.role === "prefill" && r.state === "ready" && r.pid !== old.pid) ?? null,
    30_000,
  );
  expect((await weightsOf(fresh)).map((mapping) => mapping.inode)).toContain(inode);
  expect(await stat(path)).toMatchObject({ ino: before.ino, mtimeMs: before.mtimeMs, size: before.size });
});
