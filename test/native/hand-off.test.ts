import { afterEach, expect, test } from "vitest";
import type { SequenceHandle } from "#protocol/kv.ts";
import type { Generation } from "#protocol/request.ts";
import { systemClock } from "#service/clock.ts";
import { type EngineEvent, stepEntries } from "../../native/binding/native.ts";
import { generationOf, promptOf, WHOLE } from "../support/generation.ts";
import { generate, generateTogether } from "../support/native-batch.ts";
import { NativeRank, planOf } from "../support/native-rank.ts";
import { mostStepsSatOut } from "../support/steps-sat-out.ts";

/** From a prefill engine to a decode engine that is at work. */

const ranks: NativeRank[] = [];
afterEach(async () => {
  for (const rank of ranks.splice(0)) await rank.end();
});

async function open(role: "prefill" | "decode", speculation: number): Promise<NativeRank> {
  const rank = await NativeRank.open(role, { speculation });
  ranks.push(rank);
  return rank;
}

function reserve(d: NativeRank, generation: Generation): SequenceHandle {
  const deadlineMs = systemClock.now() + 20_000;
  return d.engine.openSequence({ generation, mode: "receive", deadlineMs, reserve: WHOLE }).handle;
}

/** Computes a prompt on P in chunks; the first token. */
async function compute(p: NativeRank, handle: SequenceHandle, rows: number, chunk = 64): Promise<number> {
  let token = -1;
  for (let at = 0; at < rows; at += chunk) token = (await p.step([handle, Math.min(chunk, rows - at)]))[0]![3]!;
  return token;
}

test.each([0, 1])(
  "streams lose no step to one that joins after its transfer, nor share one with its prompt (%i drafts)",
  async (drafts) => {
    const [p, d] = [await open("prefill", drafts), await open("decode", drafts)];
    const endless = { maxNewTokens: 3_000, sampling: { minNewTokens: 3_000 } };
    const running = [0, 1, 2].map((salt) => {
      const generation = generationOf(promptOf(40, salt), endless);
      const { handle } = d.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: 64 });
      return handle;
    });
    await d.step(...running.map((handle) => [handle, 39] as const));
    d.engine.submit(planOf(...running.map((handle) => [handle, 1, 1_400] as const)));

    for (const salt of [7, 8]) {
      const joining = generationOf(promptOf(250, salt), { maxNewTokens: 20, sampling: { minNewTokens: 20 } });
      const handle = reserve(d, joining);
      const { handle: there } = p.engine.openSequence({
        generation: joining,
        mode: "compute",
        deadlineMs: 0,
        reserve: 0,
      });
      p.engine.exportTo(there, d.targetOf(handle));
      const firstToken = await compute(p, there, 250);
      p.engine.closeSequence(there, true);
      await d.event("received", handle);
      const before = d.steps.length;
      d.engine.attach(handle, firstToken);
      d.engine.submit(planOf([handle, 0, 280]));
      await d.until("the joining one to end", () => tokensOf(d, handle, before).length >= 19);
      d.engine.closeSequence(handle, false);
      // From its first step on it has the rows of a stream: a token, and the drafts made for it.
      const rows = d.steps.flatMap((result) => stepEntries(result)).filter(({ slot }) => slot === handle.slot);
      expect(Math.max(...rows.map((entry) => entry.rows))).toBeLessThanOrEqual(1 + drafts);
    }
    for (const handle of running) d.engine.closeSequence(handle, false);
    await d.until("the last step", () => d.engine.stats().sequences === 0, 5);
    expect(mostStepsSatOut(d.steps)).toBe(0);
    expect(tokensOf(d, running[0]!, 0).length).toBeGreaterThan(40);
  },
);

/** Tokens of a sequence in the steps told since `from`. */
function tokensOf(rank: NativeRank, { slot, generation }: SequenceHandle, from: number): number[] {
  const own = rank.steps.slice(from).flatMap((result) => stepEntries(result));
  return own.filter((entry) => entry.slot === slot && entry.generation === generation).flatMap(({ tokens }) => tokens);
}

test("all pages are announced as written, the draft layer's too, whenever a prompt is directed", async () => {
  const attentions = 7;
  const [p, alone] = [await open("prefill", 1), await open("decode", 1)];
  const whens = ["before its last rows", "at its first token", "when it is computed"] as const;
  for (const [number, when] of [...whens, ...whens, ...whens, ...whens].entries()) {
    const length = 60 + 13 * number;
    const generation = generationOf(promptOf(length, number), { maxNewTokens: 12 });
    const d = await open("decode", 1);
    const there = reserve(d, generation);
    const { handle } = p.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: 0 });
    const direct = () => p.engine.exportTo(handle, d.targetOf(there));
    if (when === "before its last rows") direct();
    if (when === "at its first token") {
      // The step goes on with the draft layer's pass meanwhile.
      p.onEvents = (events) => {
        if (events.some((event) => event.kind === "first-token")) direct();
      };
    }
    const firstToken = await compute(p, handle, length);
    if (when === "when it is computed") direct();
    p.onEvents = () => {};
    p.engine.closeSequence(handle, true);
    const received = await d.event("received", there);
    expect(received.pages).toBe(attentions * Math.ceil(length / 64));
    d.engine.attach(there, firstToken);
    const attached = { handle: there, length, firstToken };
    const [moved] = await generateTogether(d, [{ generation, attached }]);
    expect(moved!.tokens).toEqual((await generate(alone, generation)).tokens);
  }
  const told = p.events.filter(
    (event): event is Extract<EngineEvent, { kind: "first-token" }> => event.kind === "first-token",
  );
  expect(told).toHaveLength(4 * whens.length);
});
