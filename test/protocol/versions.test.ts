import { expect, test } from "vitest";
import { decode, encode } from "#protocol/bus/wire.ts";
import { ReserveReply } from "#protocol/decode.ts";
import { BLOCK_STATES } from "#protocol/lifecycle.ts";
import { compatible, ModelCard } from "#protocol/model-card.ts";
import { PrefillWork } from "#protocol/prefill.ts";
import { Heartbeat } from "#protocol/worker.ts";
import { EMPTY_FLEET, withHeartbeat } from "../../control-plane/fleet/fleet.ts";
import { beatOf, cardOf, loadOf } from "../support/fleet-of.ts";
import { generationOf, promptOf } from "../support/generation.ts";

/** What arrives of it elsewhere. */
const sent = (message: unknown): Record<string, unknown> => decode(encode(message)) as Record<string, unknown>;

test("a heartbeat of an older version, without what is told since, is a heartbeat", () => {
  const { load, ...rest } = sent(beatOf("d1", { load: loadOf({ requests: 3 }) }));
  const { blocks: _blocks, kvBytesMoved: _moved, ...before } = load as Record<string, unknown>;
  const read = Heartbeat.parse({ ...rest, load: before });
  expect(read.load).toMatchObject({ requests: 3, kvBytesMoved: 0 });
  expect(Object.keys(read.load.blocks).sort()).toEqual([...BLOCK_STATES].sort());
  expect(withHeartbeat(EMPTY_FLEET, read, 0, 0).ranks.size).toBe(1);
});

test("a heartbeat of a newer version, with what is not known here, is read without it, at every depth", () => {
  const beat = beatOf("d1", { load: loadOf() });
  const { load, model, ...rest } = sent(beat) as unknown as typeof beat;
  const newer = {
    ...{ ...rest, mood: "good" },
    model: { ...model, colour: "blue" },
    load: { ...load, blocks: { ...load.blocks, frozen: 4 }, work: { ...load.work, naps: 1 } },
  };
  expect(Heartbeat.parse(sent(newer))).toEqual(beat);
});

test("orders and answers are read in the same way", () => {
  const generation = generationOf(promptOf(20, 1), { maxNewTokens: 4 });
  const work = {
    ...{ kind: "prefill-work", head: { requestId: "r", attempt: 0, owner: "g" }, generation },
    ...{ reservation: null, epoch: 1, deadlineMs: 5 },
  };
  const newer = { ...work, hurry: true, generation: { ...generation, style: "terse" } };
  expect(PrefillWork.parse(sent(newer))).toEqual(PrefillWork.parse(sent(work)));
  const refused = { kind: "refused", code: "busy", detail: "", retryAfterMs: 5 };
  expect(ReserveReply.parse(sent({ ...refused, since: 12 }))).toEqual(refused);
});

test("what is known and wrong is refused still", () => {
  const beat = sent(beatOf("d1", { load: loadOf() }));
  expect(Heartbeat.safeParse({ ...beat, epoch: "1" }).success).toBe(false);
  expect(Heartbeat.safeParse({ ...beat, model: { ...(beat.model as object), layout: "" } }).success).toBe(false);
  const { rankId: _rankId, ...nameless } = beat;
  expect(Heartbeat.safeParse(nameless).success).toBe(false);
});

test("versions that read each other pair only where their KV is the same", () => {
  const card = cardOf();
  const newer = ModelCard.parse(sent({ ...card, colour: "blue" }));
  expect(compatible(card, newer)).toBe(true);
  expect(compatible(card, { ...newer, modelHash: "another" })).toBe(false);
  expect(compatible(card, { ...newer, layout: "another" })).toBe(false);
});
