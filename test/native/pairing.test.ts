import { afterEach, expect, test } from "vitest";
import type { RankId, WorkerId } from "#protocol/ids.ts";
import type { Hello } from "#protocol/worker.ts";
import { systemClock } from "#service/clock.ts";
import { numericsOf } from "#service/worker-config.ts";
import { lacksPartner } from "../../control-plane/fleet/registration.ts";
import { beatOf, cardOf, fleetOf } from "../support/fleet-of.ts";
import { generationOf, promptOf, WHOLE } from "../support/generation.ts";
import { NativeRank } from "../support/native-rank.ts";

/** Prefill and decode engines over the same checkpoint whose numbers are not the same. */

const ranks: NativeRank[] = [];
afterEach(async () => {
  for (const rank of ranks.splice(0)) await rank.end();
});

interface Settings {
  readonly deterministic: boolean;
  readonly weightFormat: "checkpoint" | "int8";
}
const PLAIN: Settings = { deterministic: false, weightFormat: "checkpoint" };

async function open(role: "prefill" | "decode", settings: Settings) {
  const rank = await NativeRank.open(role, { backend: "cpu", ...settings });
  ranks.push(rank);
  const { modelHash, layout, vocabSize, contextLength, attentions, pageBytes } = rank.engine.info;
  const numerics = numericsOf(settings);
  return { rank, card: cardOf({ modelHash, layout, numerics, vocabSize, contextLength, attentions, pageBytes }) };
}

function helloOf(name: string, model: ReturnType<typeof cardOf>): Hello {
  const [workerId, rankId] = [name as WorkerId, `${name}-r0` as RankId];
  return { ...{ kind: "hello", workerId, rankId, rank: 0, ranks: 1, role: "decode" }, model, experts: 12, clockMs: 0 };
}

test.each<[string, Settings, Settings]>([
  ["its numerics are plain, the other's deterministic", { ...PLAIN, deterministic: true }, PLAIN],
  ["its numerics are deterministic, the other's plain", PLAIN, { ...PLAIN, deterministic: true }],
  ["its numerics are int8, the other's plain", PLAIN, { ...PLAIN, weightFormat: "int8" }],
])("a pair is refused because %s, and so are pages that come all the same", async (reason, forP, forD) => {
  const [p, d] = [await open("prefill", forP), await open("decode", forD)];
  const fleet = fleetOf([beatOf("p1", { model: p.card })]);
  expect(lacksPartner(fleet, helloOf("d1", d.card), [])).toBe(`KV cannot pass between d1-r0 and p1-r0: ${reason}`);
  expect(lacksPartner(fleet, helloOf("d1", { ...d.card, numerics: p.card.numerics }), [])).toMatch(/its model hash is/);

  const generation = generationOf(promptOf(100));
  const inTime = systemClock.now() + 20_000;
  const there = d.rank.engine.openSequence({ generation, mode: "receive", deadlineMs: inTime, reserve: WHOLE });
  const here = p.rank.engine.openSequence({ generation, mode: "compute", deadlineMs: 0, reserve: 0 });
  p.rank.engine.exportTo(here.handle, d.rank.targetOf(there.handle, { deadlineMs: systemClock.now() + 1_000 }));
  await p.rank.step([here.handle, 100]);
  p.rank.engine.closeSequence(here.handle, true);
  await p.rank.event("send-failed", here.handle);
  const { pagesReceived, framesRefused } = d.rank.engine.stats();
  expect({ pagesReceived, refused: framesRefused.incompatible > 0 }).toEqual({ pagesReceived: 0, refused: true });
  d.rank.engine.closeSequence(there.handle, false);
});
