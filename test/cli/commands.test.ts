import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { StatusReport } from "#protocol/operator.ts";
import { type Answer, stream } from "../support/client.ts";
import { dialogues, expectedAnswer, nanoModel } from "../support/dialogues.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { runCli, type System, startSystem, waitFor } from "../support/system.ts";

/** The commands beside a running system. */

const { tokenizer } = await nanoModel();

let system: System;

beforeAll(async () => {
  system = await startSystem({ MARGAY_BACKEND: "ref" });
  await system.ready("prefill", 1);
  await system.ready("decode", 1);
});
afterAll(async () => expect(await system.stop()).toBe(0));

const cli = (...argv: string[]) =>
  runCli(argv, { PATH: process.env.PATH ?? "", MARGAY_PORT: "0", MARGAY_STATE_DIR: system.stateFolder });

describe("status", () => {
  test("shows models and workers as tables", async () => {
    const { code, stdout, stderr } = await cli("status");
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(/^gw-\w+, up \d+ s\n\nMODEL +WAITING +RUNNING +WANTED P +WANTED D\nnano +0 +0 +1 +1\n/);
    for (const { workerId, role, healthUrl } of await system.ranks())
      expect(stdout).toMatch(
        new RegExp(`\\n${workerId} +0/1 +- +${role} +ready +nano +\\d+ +0/64 +0/\\d+ +\\d+\\.\\d s +${healthUrl}\n`),
      );
  });

  test("--json is the report as one line", async () => {
    const { code, stdout } = await cli("status", "--json");
    expect(code).toBe(0);
    expect(stdout.trim().split("\n")).toHaveLength(1);
    const report = StatusReport.parse(JSON.parse(stdout));
    expect(report.models).toEqual([{ name: "nano", waiting: 0, running: 0, wantedPrefill: 1, wantedDecode: 1 }]);
    expect(report.ranks.map((rank) => rank.role).sort()).toEqual(["decode", "prefill"]);
  });
});

test("a command whose output nobody reads any more ends without a word", async () => {
  const child = spawn(process.execPath, ["control-plane/cli/margay.ts", "status", "--watch"], {
    cwd: fileURLToPath(new URL("../..", import.meta.url)),
    env: { PATH: process.env.PATH, MARGAY_STATE_DIR: system.stateFolder },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const complaint = text(child.stderr);
  await once(child.stdout, "data");
  child.stdout.destroy();
  expect(await once(child, "exit")).toEqual([0, null]);
  expect(await complaint).toBe("");
});

describe("send", () => {
  const simple = (thinking: boolean) => {
    const found = dialogues.find(
      (d) => d.messages.length === 1 && d.tools === null && (expectedAnswer(d).reasoning !== "") === thinking,
    )!;
    const limits = ["--temperature", "0", "--max-tokens", String(tokenizer.encode(found.greedy).length)];
    return { ...expectedAnswer(found), argv: [...limits, String(found.messages[0]!.content)] };
  };

  test("prints the answer, and who gave it", async () => {
    const { argv, content } = simple(false);
    const { code, stdout, stderr } = await cli("send", "--no-think", ...argv);
    expect(stdout).toBe(`${content}\n`);
    expect(stderr).toMatch(/x-margay-prefill: prefill-\S+ \| x-margay-decode: decode-\S+/);
    expect(code).toBe(0);
  });

  test("--think prints the reasoning first", async () => {
    const { argv, content, reasoning } = simple(true);
    const { code, stdout } = await cli("send", "--think", ...argv);
    expect(stdout.replace(/\s+/g, " ")).toBe(`${reasoning} ${content} `.replace(/\s+/g, " "));
    expect(code).toBe(0);
  });

  test("a refusal is one sentence and exit code 1", async () => {
    const { code, stdout, stderr } = await cli("send", "--model", "none", "Hi");
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(/^margay: The model does not exist; this server has "nano"\.\n$/);
  });
});

describe("drain", () => {
  test.each(["decode", "prefill"] as const)(
    "a %s worker leaves after its requests, another one takes its place, and no stream is hurt",
    async (role) => {
      const before = await system.ready(role, 1);
      const old = before[0]!;
      const prompt = Array.from({ length: 30 }, (_, i) => `${role} ${i}`).join(" ");
      const body = { model: "nano", prompt, temperature: 0, max_tokens: 1_500, min_tokens: 1_500 };
      const streaming = Promise.withResolvers<void>();
      const running = stream(system.url, "/v1/completions", body, { onChunk: () => streaming.resolve() });
      let ended = false;
      void running.then(() => (ended = true));
      await Promise.race([streaming.promise, running]);
      const { code, stdout } = await cli("drain", old.workerId);
      expect({ code, stdout }).toEqual({ code: 0, stdout: `${old.workerId} is draining\n` });
      expect(ended).toBe(false);
      const successor = await waitFor(
        "a successor",
        async () =>
          (await system.ranks()).find((r) => r.role === role && r.state === "ready" && r.pid !== old.pid) ?? null,
        60_000,
        system.log,
      );
      const answer: Answer = await running;
      expect(answer.error).toBeNull();
      expect(answer.usage!.completion_tokens).toBe(1_500);
      expect(answer.comments.at(-1)).toContain(`x-margay-${role}: ${old.workerId}`);
      await waitFor(
        "the worker to end",
        () =>
          new RegExp(`"worker":"${old.workerId}","rank":0,"message":"a stopped worker ended with code 0"`).test(
            system.log(),
          )
            ? true
            : null,
        30_000,
        system.log,
      );
      expect((await system.ranks()).map((rank) => rank.workerId)).not.toContain(old.workerId);
      const later = await stream(system.url, "/v1/completions", { ...body, max_tokens: 4, min_tokens: 4 });
      expect(later.comments.at(-1)).toContain(`x-margay-${role}: ${successor.workerId}`);
      await expectNothingHeld(system);
    },
  );

  test("a worker that is not there", async () => {
    const { code, stderr } = await cli("drain", "decode-99");
    expect({ code, stderr }).toEqual({
      ...{ code: 1, stderr: "margay: there is no worker decode-99; margay status lists them\n" },
    });
  });
});

test("a second `up` on the same state folder is refused with the address of the first, which goes on", async () => {
  const { code, stderr } = await cli("up");
  expect(code).toBe(1);
  const { pid } = JSON.parse(await readFile(join(system.stateFolder, "run.json"), "utf8")) as { pid: number };
  expect(stderr).toBe(`margay: Margay is already running at ${system.url} (process ${pid})\n`);
  expect((await fetch(`${system.url}/readyz`)).status).toBe(200);
  expect((await cli("status")).code).toBe(0);
});
