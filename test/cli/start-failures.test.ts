import { execFile } from "node:child_process";
import { once } from "node:events";
import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { unary } from "../support/client.ts";
import { NANO } from "../support/dialogues.ts";
import { runCli, startSystem } from "../support/system.ts";

/** What keeps a system from starting is one sentence and a non-zero exit, before anything is started. */

const root = fileURLToPath(new URL("../..", import.meta.url));
let folder: string;
let stateFolder: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "margay-test-"));
  stateFolder = join(folder, "state");
});
afterEach(() => rm(folder, { recursive: true }));

const up = (settings: Readonly<Record<string, string>>) =>
  runCli(["up"], { PATH: process.env.PATH ?? "", MARGAY_PORT: "0", MARGAY_STATE_DIR: stateFolder, ...settings });

function expectRefused(ended: Awaited<ReturnType<typeof runCli>>, ...sentences: readonly RegExp[]): void {
  const lines = ended.stderr.trim().split("\n");
  expect(lines).toHaveLength(sentences.length);
  for (const [i, sentence] of sentences.entries()) expect(lines[i]).toMatch(sentence);
  expect(ended.code).toBe(1);
}

/** A server would have left its configuration, the control plane its log lines. */
async function expectNothingStarted(): Promise<void> {
  expect(await readdir(stateFolder).catch(() => [])).toEqual([]);
}

/** A copy of nano that may be broken. */
async function checkpoint(): Promise<string> {
  const copy = join(folder, "nano");
  await cp(NANO, copy, { recursive: true });
  return copy;
}

describe("settings", () => {
  test("unknown and bad ones are all told at once", async () => {
    const { code, stderr } = await up({ MARGAY_PROT: "8000", MARGAY_MAX_N: "many", MARGAY_PORT: "x" });
    expect(
      stderr
        .replace(/^margay: /, "")
        .trim()
        .split("\n")
        .sort(),
    ).toEqual([
      "MARGAY_MAX_N=many: must be a whole number",
      "MARGAY_PORT=x: must be a whole number",
      "MARGAY_PROT is not a setting of Margay",
    ]);
    expect(code).toBe(1);
    await expectNothingStarted();
  });

  test.each([
    [{ MARGAY_MAX_N: "many" }, /MARGAY_MAX_N=many: must be a whole number/],
    [{ MARGAY_BACKEND: "gpu" }, /MARGAY_BACKEND=gpu: .*"ref"/],
    [{ MARGAY_PREFILL: "3..1" }, /MARGAY_PREFILL=3..1: must be MIN..MAX/],
    [{ MARGAY_KV_ADVERTISE: "here" }, /MARGAY_KV_ADVERTISE=here: must be an IPv4 address and a port/],
    [{ MARGAY_PORT: "70000" }, /MARGAY_PORT=70000/],
    [{ MARGAY_MODEL: "a=models/nano,a=models/nano" }, /MARGAY_MODEL=.*the name a stands twice/],
  ])("%j", async (settings, sentence) => {
    expectRefused(await up(settings as Record<string, string>), sentence);
    await expectNothingStarted();
  });
});

describe("a checkpoint folder", () => {
  test.each([
    ["does not exist", () => Promise.resolve("/nowhere/nano"), /nowhere\/nano\/config\.json does not exist/],
    [
      "has no config.json",
      async () => {
        const nano = await checkpoint();
        await rm(join(nano, "config.json"));
        return nano;
      },
      /config\.json does not exist/,
    ],
    [
      "has a config.json that is cut off",
      async () => {
        const nano = await checkpoint();
        await truncate(join(nano, "config.json"), 100);
        return nano;
      },
      /config\.json is not valid JSON/,
    ],
    [
      "has no tokenizer",
      async () => {
        const nano = await checkpoint();
        await rm(join(nano, "tokenizer.json"));
        return nano;
      },
      /tokenizer\.json/,
    ],
  ])("that %s", async (_what, broken, sentence) => {
    expectRefused(await up({ MARGAY_MODEL: await broken() }), sentence);
    await expectNothingStarted();
  });

  test("whose weights lack a tensor is told to the request that waits for it, within the promised time", async () => {
    const nano = await checkpoint();
    const file = join(nano, "model.safetensors");
    const bytes = await readFile(file);
    bytes.write("model.norm.weighX", bytes.indexOf("model.norm.weight"));
    await writeFile(file, bytes);
    const system = await startSystem({
      ...{ MARGAY_MODEL: nano, MARGAY_WAIT_SECONDS: "8", MARGAY_PREFILL: "0..1", MARGAY_DECODE: "0..1" },
    });
    try {
      const answer = await unary(system.url, "/v1/completions", { model: "nano", prompt: "Hello", max_tokens: 4 });
      expect(answer.status).toBe(503);
      expect(answer.error!.code).toBe("no_worker");
      expect(answer.error!.message).toMatch(/within (8|7\.\d) seconds.*model\.norm\.weight/);
      expect(answer.headers.get("retry-after")).toMatch(/^\d+$/);
    } finally {
      expect(await system.stop()).toBe(0);
    }
  });
});

test("a port in use", async () => {
  const other = createServer().listen(0, "127.0.0.1");
  await once(other, "listening");
  const { port } = other.address() as AddressInfo;
  expectRefused(await up({ MARGAY_PORT: String(port) }), new RegExp(`port ${port} of 127.0.0.1 is in use`));
  other.close();
  await expectNothingStarted();
});

test("an address that is not of this machine", async () => {
  expectRefused(await up({ MARGAY_HOST: "192.0.2.1", MARGAY_PORT: "8000" }), /192\.0\.2\.1 cannot be listened on/);
  await expectNothingStarted();
});

test.each([
  ["a file in its place", ""],
  ["a file on the way to it", "/deeper"],
])("a state folder that cannot be written: %s", async (_what, below) => {
  const file = join(folder, "file");
  await writeFile(file, "");
  expectRefused(await up({ MARGAY_STATE_DIR: `${file}${below}` }), /the state folder \S+ cannot be written: E/);
});

test("no nats-server to be had", async () => {
  // The same program in a checkout without one: links, and node told not to look behind them.
  const checkout = join(folder, "checkout");
  await mkdir(checkout);
  for (const name of ["control-plane", "node_modules", "models", "package.json"])
    await symlink(join(root, name), join(checkout, name));
  const argv = ["--preserve-symlinks", "--preserve-symlinks-main", "control-plane/cli/margay.ts", "up"];
  const env = { PATH: folder, MARGAY_PORT: "0", MARGAY_STATE_DIR: stateFolder };
  const ended = await new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
    const child = execFile(process.execPath, argv, { cwd: checkout, env }, (_error, stdout, stderr) =>
      resolve({ code: child.exitCode ?? -1, stdout, stderr }),
    );
  });
  expectRefused(ended, /there is no nats-server: run `npm run setup`, put one on PATH, or set MARGAY_NATS_URL/);
  await expectNothingStarted();
});
