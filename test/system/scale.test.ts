import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { unary } from "../support/client.ts";
import { chatBody, dialogues, expectedAnswer, nanoModel } from "../support/dialogues.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { type System, startSystem, waitFor } from "../support/system.ts";

/** Workers come and go with the requests. */

const { tokenizer } = await nanoModel();
const completion = (model: string, prompt: string) => ({ model, prompt, max_tokens: 12, min_tokens: 12 });

describe("from zero to two and back", () => {
  const idleSeconds = 2;
  let system: System;

  beforeAll(async () => {
    system = await startSystem({
      MARGAY_BACKEND: "cpu",
      MARGAY_MODEL: "a=models/nano,b=models/nano",
      MARGAY_PREFILL: "0..2",
      MARGAY_DECODE: "0..2",
      MARGAY_IDLE_SECONDS: String(idleSeconds),
    });
  });
  afterAll(async () => expect(await system.stop()).toBe(0));

  const nobodyLeft = () =>
    waitFor(
      "all workers to be gone",
      async () => ((await system.ranks()).length === 0 ? true : null),
      idleSeconds * 1000 * 3 + 10_000,
      system.log,
    );

  const lines = () =>
    [...system.log().matchAll(/^\{.*\}$/gm)].map(
      ([line]) => JSON.parse(line) as { readonly message: string; readonly worker?: string; readonly pid?: number },
    );
  const startedPids = () => lines().flatMap(({ message, pid }) => (message === "starting a worker" ? [pid!] : []));
  /** Workers of the log lines that match. */
  const told = (pattern: RegExp): readonly string[] =>
    lines()
      .flatMap(({ message, worker }) => (worker !== undefined && pattern.test(message) ? [worker] : []))
      .sort();

  test("a request that finds no workers waits, is told so, and is answered", async () => {
    expect(await system.ranks()).toEqual([]);
    const asked = fetch(`${system.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...completion("a", "Hello"), stream: true }),
    });
    // Held until the first bytes are here, so that they can be nothing but a comment.
    const pid = await waitFor("a worker", () => startedPids()[0] ?? null, 15_000, system.log);
    process.kill(pid, "SIGSTOP");
    const response = await asked.finally(() => process.kill(pid, "SIGCONT"));
    const text = await response.text();
    expect(text).toMatch(/^: margay waking prefill 1\/1 \w+, decode 1\/1 \w+; \d+ s\n/);
    expect(text).toContain("data: [DONE]");
    expect(text).toMatch(/x-margay-prefill: prefill-\S+ \| x-margay-decode: decode-/);
    expect(text).not.toContain('"error"');
  });

  test("after the idle time all workers end by themselves, with exit code 0", async () => {
    await nobodyLeft();
    await waitFor("their ends to be told", () => (told(/^a stopped worker/).length >= 2 ? true : null), 15_000);
    expect(told(/^a stopped worker ended with code 0$/)).toEqual(told(/^starting a worker$/));
    expect(told(/starting another|killing it/)).toEqual([]);
  });

  test("a burst of 50 requests of two models wakes them again; each model has workers of its own", async () => {
    const answers = await Promise.all(
      Array.from({ length: 50 }, (_, i) =>
        unary(system.url, "/v1/completions", completion(i % 2 === 0 ? "a" : "b", `Request number ${i} says hello`)),
      ),
    );
    expect(answers.map((answer) => answer.error).filter((error) => error !== null)).toEqual([]);
    expect(answers.map((answer) => answer.usage!.completion_tokens)).toEqual(answers.map(() => 12));
    const workersOf = (parity: number) =>
      new Set(
        answers
          .filter((_, i) => i % 2 === parity)
          .flatMap(({ headers }) => [headers.get("x-margay-prefill")!, headers.get("x-margay-decode")!]),
      );
    const [a, b] = [workersOf(0), workersOf(1)];
    expect(a.size).toBeGreaterThanOrEqual(2);
    expect(b.size).toBeGreaterThanOrEqual(2);
    expect([...a].filter((worker) => b.has(worker))).toEqual([]);
    await nobodyLeft();
    await waitFor(
      "their ends to be told",
      () => (told(/^a stopped worker/).length === told(/^starting a worker$/).length ? true : null),
      15_000,
    );
    expect(told(/^a stopped worker ended with code 0$/)).toEqual(told(/^starting a worker$/));
  });
});

describe("with a minimum of one", () => {
  let system: System;

  beforeAll(async () => {
    system = await startSystem({ MARGAY_BACKEND: "ref", MARGAY_LOCAL_PREFILL_TOKENS: "64" });
    await system.ready("prefill", 1);
    await system.ready("decode", 1);
  });
  afterAll(async () => expect(await system.stop()).toBe(0));

  const sum = (samples: ReadonlyMap<string, number>) => [...samples.values()].reduce((a, b) => a + b, 0);

  test("a short prompt is computed by the decode worker itself, with the same answer; a long one is not", async () => {
    const decode = (await system.ready("decode", 1))[0]!;
    const prefill = (await system.ready("prefill", 1))[0]!;
    const tokens = (text: string) => tokenizer.encode(text).length;
    const ask = (dialogue: (typeof dialogues)[number]) =>
      unary(system.url, "/v1/chat/completions", {
        ...{ ...chatBody(dialogue), temperature: 0 },
        max_tokens: tokens(dialogue.greedy),
      });
    const short = dialogues.filter((dialogue) => tokens(dialogue.prompt) <= 64 && dialogue.tools === null);
    const long = dialogues.find((dialogue) => tokens(dialogue.prompt) > 64)!;
    expect(short.length).toBeGreaterThan(3);
    for (const dialogue of short) {
      const answer = await ask(dialogue);
      expect(answer.content).toBe(expectedAnswer(dialogue).content);
      expect(answer.reasoning).toBe(expectedAnswer(dialogue).reasoning);
      expect(answer.headers.get("x-margay-prefill")).toBe(decode.workerId);
      expect(answer.headers.get("x-margay-decode")).toBe(decode.workerId);
    }
    expect(sum(await system.metric(prefill.healthUrl, "margay_prefill_tokens_total"))).toBe(0);
    expect(sum(await system.metric(decode.healthUrl, "margay_prefill_tokens_total"))).toBeGreaterThan(0);
    expect((await ask(long)).headers.get("x-margay-prefill")).toBe(prefill.workerId);
    // Now most of it is in the decode worker's cache, so that only the rest would have to be computed.
    const again = await ask(long);
    expect(again.headers.get("x-margay-prefill")).toBe(decode.workerId);
    expect(again.content).toBe(expectedAnswer(long).content);
    await expectNothingHeld(system);
  });

  test.each(["prefill", "decode"] as const)("an idle %s worker that is killed is replaced", async (role) => {
    const old = (await system.ready(role, 1))[0]!;
    process.kill(old.pid, "SIGKILL");
    const fresh = await waitFor(
      "its successor",
      async () =>
        (await system.ranks()).find((r) => r.role === role && r.state === "ready" && r.pid !== old.pid) ?? null,
      30_000,
      system.log,
    );
    expect(fresh.workerId).not.toBe(old.workerId);
    const prompt = Array.from({ length: 40 }, (_, i) => `${role}${i}`).join(" ");
    const answer = await unary(system.url, "/v1/completions", completion("nano", prompt));
    expect(answer.error).toBeNull();
    expect(answer.headers.get(`x-margay-${role}`)).toBe(fresh.workerId);
  });
});
