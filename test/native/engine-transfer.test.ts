import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";
import type { SequenceHandle } from "#protocol/kv.ts";
import type { Generation } from "#protocol/request.ts";
import { systemClock } from "#service/clock.ts";
import type { EngineOptions, ExportTarget, OpenedSequence } from "../../native/binding/native.ts";
import { Authority, hasOpenssl } from "../support/certificates.ts";
import { dialogues, nanoModel } from "../support/dialogues.ts";
import { generationOf, promptOf, WHOLE } from "../support/generation.ts";
import { type Generated, generate, generateTogether } from "../support/native-batch.ts";
import { NativeRank } from "../support/native-rank.ts";

let p: NativeRank;
let d: NativeRank;

function reserve(generation: Generation, deadlineMs = systemClock.now() + 20_000): OpenedSequence {
  return d.engine.openSequence({ generation, mode: "receive", deadlineMs, reserve: WHOLE });
}

/** Opens the sequence on P and says where its pages go. */
function begin(generation: Generation, there: OpenedSequence, changes: Partial<ExportTarget> = {}): OpenedSequence {
  const here = p.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: 0 });
  p.engine.exportTo(here.handle, d.targetOf(there.handle, { cachedTokens: there.cachedTokens, ...changes }));
  return here;
}

/** Computes the prompt from row `from` on P; the first token. */
async function prefill({ handle }: OpenedSequence, from: number, upTo: number, chunk = 50): Promise<number> {
  let token = -1;
  for (let at = from; at < upTo; at += chunk) {
    token = (await p.step([handle, Math.min(chunk, upTo - at)]))[0]![3]!;
  }
  return token;
}

/** The whole way: reserved on D, computed on P, moved, attached. */
async function move(generation: Generation, chunk = 50) {
  const there = reserve(generation);
  const here = begin(generation, there);
  const firstToken = await prefill(here, here.cachedTokens, generation.tokens.length, chunk);
  p.engine.closeSequence(here.handle, true);
  const received = await d.event("received", there.handle);
  const length = d.engine.attach(there.handle, firstToken);
  expect(length).toBe(generation.tokens.length);
  return { there, here, received, attached: { handle: there.handle, length, firstToken } };
}

async function decode(
  generation: Generation,
  attached: { handle: SequenceHandle; length: number; firstToken: number },
) {
  return (await generateTogether(d, [{ generation, attached }]))[0]!;
}

async function openBoth(prefill: Partial<EngineOptions>, decode = prefill): Promise<void> {
  [p, d] = await Promise.all([NativeRank.open("prefill", prefill), NativeRank.open("decode", decode)]);
}

const authority = hasOpenssl ? new Authority() : null;
afterAll(() => authority?.[Symbol.dispose]());

/** Settings of a rank that speaks TLS, with a certificate of `one`, to those of `trusted`. */
function secured(name: string, one: Authority, trusted = one): Partial<EngineOptions> {
  const { certFile: certificate, keyFile: key } = one.issue(name);
  return { kvTransport: "tcp", kvTls: { certificate, key, authority: trusted.caFile } };
}

const WAYS: readonly (readonly [string, Partial<EngineOptions>])[] = [
  ["auto", { kvTransport: "auto" }],
  ["tcp", { kvTransport: "tcp" }],
  ...(authority === null ? [] : [["tls", secured("rank", authority)] as const]),
];

afterEach(async () => {
  await p.end();
  await d.end();
});

describe.each(WAYS)("over %s", (_, way) => {
  beforeEach(() => openBoth(way));

  test("every recorded dialogue, computed on one engine and decoded on another, gets its recorded answer", async () => {
    const { tokenizer } = await nanoModel();
    for (const { prompt, greedy } of dialogues) {
      const generation = generationOf(tokenizer.encode(prompt), { maxNewTokens: 256 });
      const { attached } = await move(generation);
      expect(tokenizer.decode((await decode(generation, attached)).tokens)).toEqual(greedy);
    }
    await p.idle();
    expect(d.engine.stats().prefillTokens).toBe(0);
    expect(d.engine.stats().bytesReceived).toBeGreaterThan(0);
    expect(d.engine.stats().bytesReceived).toBe(p.engine.stats().bytesSent);
    expect(Object.values(d.engine.stats().framesRefused).every((count) => count === 0)).toBe(true);
  });

  test("log-probabilities after a transfer are those of one engine alone, to the bit", async () => {
    const generation = generationOf(promptOf(150), { maxNewTokens: 12, sampling: { topLogprobs: 20 } });
    const { here, there, received, attached } = await move(generation, 37);
    const first = p.steps.flatMap(({ logprobs }) => logprobs);
    const moved = await decode(generation, attached);
    const sent = await p.event("sent", here.handle);
    // Three blocks of six attentions; the last page holds 22 rows of 512 bytes.
    expect([received.pages, sent.pages]).toEqual([18, 18]);
    expect(received.handle).toEqual(there.handle);
    const local = await generate(p, generation, 256);
    expect(moved.tokens).toEqual(local.tokens);
    expect([...first, ...moved.logprobs].map(({ slot: _, ...rest }) => rest)).toEqual(
      local.logprobs.map(({ slot: _, ...rest }) => rest),
    );
  });

  test.each(["after its first step", "while its last step runs", "after its last step"] as const)(
    "a prompt whose destination is told %s arrives whole",
    async (told) => {
      const generation = generationOf(promptOf(150), { maxNewTokens: 6 });
      const there = reserve(generation);
      const here = p.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: 0 });
      const tell = () => p.engine.exportTo(here.handle, d.targetOf(there.handle));
      await p.step([here.handle, 70]);
      if (told === "after its first step") tell();
      const last = p.step([here.handle, 80]);
      if (told === "while its last step runs") tell();
      const firstToken = (await last)[0]![3]!;
      if (told === "after its last step") tell();
      p.engine.closeSequence(here.handle, true);
      const { pages } = await d.event("received", there.handle);
      expect(pages).toBe(18);
      const length = d.engine.attach(there.handle, firstToken);
      const moved = await decode(generation, { handle: there.handle, length, firstToken });
      expect(moved.tokens).toEqual((await generate(p, generation)).tokens);
    },
  );

  test("eight prompts moved at once keep apart", async () => {
    const generations = Array.from({ length: 8 }, (_, i) =>
      generationOf(promptOf(20 + 25 * i, i), { maxNewTokens: 10 }),
    );
    const opened = generations.map((generation) => {
      const there = reserve(generation);
      return { generation, there, here: begin(generation, there) };
    });
    const firstTokens = await Promise.all(
      opened.map(async ({ generation, here }) => {
        const token = await queued(() => prefill(here, 0, generation.tokens.length, 64));
        p.engine.closeSequence(here.handle, true);
        return token;
      }),
    );
    const tasks = [];
    for (const [i, { generation, there }] of opened.entries()) {
      await d.event("received", there.handle);
      const firstToken = firstTokens[i]!;
      const length = d.engine.attach(there.handle, firstToken);
      tasks.push({ generation, attached: { handle: there.handle, length, firstToken } });
    }
    const moved = await generateTogether(d, tasks);
    const local: Generated[] = [];
    for (const generation of generations) local.push(await generate(p, generation));
    expect(moved.map(({ tokens }) => tokens)).toEqual(local.map(({ tokens }) => tokens));
  });

  test("pages the decode side holds are not moved again, and pages P has cached leave without a step", async () => {
    const generation = generationOf(promptOf(200), { maxNewTokens: 4 });
    const first = await move(generation);
    const answer = await decode(generation, first.attached);
    await p.idle();
    const again = await move(generation);
    expect(again.there.cachedTokens).toBe(199);
    expect(again.here.cachedTokens).toBe(199);
    expect(again.received.pages).toBe(6);
    expect((await decode(generation, again.attached)).tokens).toEqual(answer.tokens);
    const other = await NativeRank.open("decode", way);
    const mine = d;
    d = other;
    try {
      const fresh = await move(generation);
      expect([fresh.there.cachedTokens, fresh.here.cachedTokens, fresh.received.pages]).toEqual([0, 199, 24]);
      expect((await decode(generation, fresh.attached)).tokens).toEqual(answer.tokens);
    } finally {
      await other.end();
      d = mine;
    }
  });

  test("what did not come is computed where it is needed, and the answer is the same", async () => {
    const generation = generationOf(promptOf(200), { maxNewTokens: 10 });
    const there = reserve(generation);
    const here = begin(generation, there);
    await prefill(here, 0, 150, 75);
    await d.until("the first two blocks", () => d.engine.stats().pagesReceived >= 12 || null, 5);
    p.engine.closeSequence(here.handle, false);
    expect(await p.event("send-failed", here.handle)).toMatchObject({ cause: "aborted" });
    expect(() => d.engine.attach(there.handle, 5)).toThrow(expect.objectContaining({ code: "bad_state" }));
    const length = d.engine.attach(there.handle, null);
    expect(length).toBe(128);
    const [entry] = await d.step([there.handle, 200 - length]);
    const firstToken = entry![3]!;
    const attached = { handle: there.handle, length: 200, firstToken };
    const moved = await decode(generation, attached);
    expect(d.engine.stats().prefillTokens).toBe(72);
    expect(moved.tokens).toEqual((await generate(p, generation)).tokens);
  });
});

describe("whatever is given up leaves nothing behind", () => {
  beforeEach(() => openBoth({}));
  const generation = generationOf(promptOf(200), { maxNewTokens: 50 });

  test.each([true, false])("in every phase of a request (keep %s)", async (keep) => {
    const end = (rank: NativeRank, { handle }: OpenedSequence) => rank.engine.closeSequence(handle, keep);
    const both = async (here: OpenedSequence, there: OpenedSequence) => {
      end(p, here);
      end(d, there);
      await Promise.all([p.idle(), d.idle()]);
    };
    // Reserved only.
    end(d, reserve(generation));
    await d.idle();
    // Announced, nothing computed.
    let there = reserve(generation);
    let here = begin(generation, there, { cachedTokens: 0 });
    await both(here, there);
    // In the middle of a chunk, and between two.
    there = reserve(generation);
    here = begin(generation, there);
    p.engine.submit(Int32Array.of(here.handle.slot, here.handle.generation, 60, 0));
    await both(here, there);
    there = reserve(generation);
    here = begin(generation, there);
    await p.step([here.handle, 30]);
    await both(here, there);
    // D gave up while P goes on: P is told.
    there = reserve(generation);
    here = begin(generation, there);
    end(d, there);
    await prefill(here, here.cachedTokens, 200);
    end(p, here);
    expect(await p.event("send-failed", here.handle)).toMatchObject({ cause: "stale_handle" });
    await Promise.all([p.idle(), d.idle()]);
    // All arrived, not attached; attached, not stepped; decoding, a step running.
    there = reserve(generation);
    here = begin(generation, there);
    await prefill(here, here.cachedTokens, 200);
    await d.event("received", there.handle);
    await both(here, there);
    const attached = await move(generation);
    end(d, attached.there);
    await Promise.all([p.idle(), d.idle()]);
    const decoding = await move(generation);
    await d.step([decoding.there.handle, 1]);
    d.engine.submit(Int32Array.of(decoding.there.handle.slot, decoding.there.handle.generation, 1, 0));
    end(d, decoding.there);
    await Promise.all([p.idle(), d.idle()]);
    const cached = d.engine.stats().blocks.cached;
    if (keep) expect(cached).toBeGreaterThan(0);
    else expect(cached).toBe(0);
  });

  test("a reservation that is not used lapses at its deadline, and its handle is stale then", async () => {
    const kept = reserve(generationOf(promptOf(70)));
    const lapsing = reserve(generation, systemClock.now() + 60);
    await d.event("lapsed", lapsing.handle);
    expect(() => d.engine.attach(lapsing.handle, null)).toThrow(expect.objectContaining({ code: "stale_handle" }));
    expect(d.events.filter(({ kind }) => kind !== "lapsed" && kind !== "kv")).toEqual([]);
    const here = begin(generation, lapsing);
    await prefill(here, 0, 200);
    expect(await p.event("send-failed", here.handle)).toMatchObject({ cause: "stale_handle" });
    p.engine.closeSequence(here.handle, true);
    d.engine.closeSequence(kept.handle, true);
  });

  test("a transfer under another epoch is refused and counted", async () => {
    const there = reserve(generation);
    const here = begin(generation, there, { epoch: 6 });
    await prefill(here, 0, 200);
    expect(await p.event("send-failed", here.handle)).toMatchObject({ cause: "stale_epoch" });
    expect(d.engine.stats().framesRefused.stale_epoch).toBeGreaterThan(0);
    expect(d.engine.stats().pagesReceived).toBe(0);
    p.engine.closeSequence(here.handle, true);
    d.engine.closeSequence(there.handle, true);
  });

  test("a peer that is not there fails the transfer by its deadline, and the sequence held until then", async () => {
    const here = p.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: 0 });
    const deadlineMs = systemClock.now() + 300;
    p.engine.exportTo(here.handle, d.targetOf({ slot: 0, generation: 1 }, { port: 9, deadlineMs }));
    await prefill(here, 0, 200);
    p.engine.closeSequence(here.handle, true);
    await p.event("send-failed", here.handle);
    expect(systemClock.now()).toBeLessThan(deadlineMs + 3_000);
  });
});

describe.skipIf(authority === null)("who may bring pages over TLS", () => {
  const generation = generationOf(promptOf(200), { maxNewTokens: 5 });

  async function fails(): Promise<string> {
    const there = reserve(generation);
    const here = begin(generation, there, { deadlineMs: systemClock.now() + 3_000 });
    await prefill(here, here.cachedTokens, 200);
    const { cause } = await p.event("send-failed", here.handle);
    p.engine.closeSequence(here.handle, true);
    d.engine.closeSequence(there.handle, true);
    await Promise.all([p.idle(), d.idle()]);
    expect(d.engine.stats().pagesReceived).toBe(0);
    return cause;
  }

  test("nobody without TLS, whose connection is counted", async () => {
    await openBoth({ kvTransport: "tcp" }, secured("decode", authority!));
    expect(["connect", "deadline"]).toContain(await fails());
    expect(d.engine.stats().framesRefused.malformed).toBeGreaterThan(0);
  });

  test("nobody with a certificate of another authority", async () => {
    using other = new Authority("another");
    await openBoth(secured("stranger", other, authority!), secured("decode", authority!));
    expect(["connect", "deadline"]).toContain(await fails());
    expect(d.engine.stats().framesRefused.malformed).toBeGreaterThan(0);
  });

  test("and pages go to nobody with a certificate of another authority, nor to one without TLS", async () => {
    using other = new Authority("another");
    await openBoth(secured("prefill", authority!), secured("stranger", other, authority!));
    expect(["connect", "deadline"]).toContain(await fails());
    await d.end();
    d = await NativeRank.open("decode", { kvTransport: "tcp" });
    expect(["connect", "deadline"]).toContain(await fails());
  });

  test("files that do not go together are refused by name when the engine opens", async () => {
    await openBoth({});
    const good = secured("good", authority!).kvTls!;
    const opening = (changes: Partial<typeof good>) => NativeRank.open("decode", { kvTls: { ...good, ...changes } });
    await expect(opening({ certificate: "/nowhere.crt" })).rejects.toThrow(/certificate for KV, \/nowhere\.crt/);
    await expect(opening({ key: authority!.issue("other").keyFile })).rejects.toThrow(/key for KV, .*other\.key/);
    await expect(opening({ authority: good.key })).rejects.toThrow(/authority for KV, /);
  });
});

describe("deterministic mode on cpu", () => {
  test.each([0, 2])(
    "tokens and log-probabilities are those of one engine alone, to the bit, with %d drafts",
    async (speculation) => {
      const mode = { backend: "cpu", deterministic: true } as const;
      [p, d] = await Promise.all([
        NativeRank.open("prefill", { ...mode, threads: 1, speculation }),
        NativeRank.open("decode", { ...mode, threads: 2, speculation }),
      ]);
      const generation = generationOf(promptOf(150), {
        maxNewTokens: 12,
        sampling: { temperature: 0.8, seed: 5, topLogprobs: 20 },
      });
      const { attached } = await move(generation, 37);
      const first = p.steps.flatMap(({ logprobs }) => logprobs);
      const moved = await decode(generation, attached);
      const local = await generate(p, generation, 256);
      expect(moved.tokens).toEqual(local.tokens);
      expect([...first, ...moved.logprobs].map(({ slot: _, ...rest }) => rest)).toEqual(
        local.logprobs.map(({ slot: _, ...rest }) => rest),
      );
    },
  );
});

/** One at a time: steps of several prompts do not share the queue. */
let tail: Promise<unknown> = Promise.resolve();
function queued<T>(work: () => Promise<T>): Promise<T> {
  const result = tail.then(work);
  tail = result.catch(() => {});
  return result;
}
