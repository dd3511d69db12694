import { afterEach, describe, expect, test } from "vitest";
import { FINISH } from "../../native/binding/native.ts";
import { contiguousMap } from "../support/expert-maps.ts";
import { generationOf, promptOf, WHOLE } from "../support/generation.ts";
import { type Generated, generateTogether } from "../support/native-batch.ts";
import { NativeGroup } from "../support/native-group.ts";
import { NativeRank, planOf } from "../support/native-rank.ts";
import { mostStepsSatOut } from "../support/steps-sat-out.ts";

const ranks: NativeRank[] = [];
const groups: NativeGroup[] = [];

async function alone(changes: Parameters<typeof NativeRank.open>[1] = {}): Promise<NativeRank> {
  const rank = await NativeRank.open("decode", changes);
  ranks.push(rank);
  return rank;
}

async function group(...args: Parameters<typeof NativeGroup.open>): Promise<NativeGroup> {
  const opened = await NativeGroup.open(...args);
  groups.push(opened);
  return opened;
}

afterEach(async () => {
  for (const opened of groups.splice(0)) await opened.end();
  for (const rank of ranks.splice(0)) await rank.end();
});

const requests = (rank: number) =>
  Array.from({ length: 3 }, (_, i) =>
    generationOf(promptOf(9 + 40 * i, 10 * rank + i), {
      maxNewTokens: 10 + 5 * i,
      sampling: { temperature: i === 1 ? 0.8 : 0, seed: 5, topLogprobs: 3 },
    }),
  );
const tasks = (rank: number) => requests(rank).map((generation) => ({ generation, attached: null }));
const told = (generated: readonly Generated[]) => generated.map(({ tokens, logprobs }) => ({ tokens, logprobs }));

describe.each(["ref", "cpu"] as const)("groups of engines on %s", (backend) => {
  test.each([
    [2, "auto"],
    [3, "auto"],
    [4, "auto"],
    [2, "tcp"],
    [3, "tcp"],
  ] as const)(
    "%i ranks over %s give the tokens and log-probabilities of one alone, drafts on",
    async (size, transport) => {
      const options = { backend, deterministic: true, speculation: 1 };
      const wanted: unknown[] = [];
      const one = await alone(options);
      for (let rank = 0; rank < size; rank++) wanted.push(told(await generateTogether(one, tasks(rank), 23)));
      const several = await group(size, options, transport);
      const given = await Promise.all(several.ranks.map((rank, i) => generateTogether(rank, tasks(i), 16 + 7 * i)));
      expect(given.map(told)).toEqual(wanted);
      for (const rank of several.ranks) expect(several.statsOf(rank).bytesDispatched).toBeGreaterThan(0);
    },
  );
});

test("ranks without work take part in the others' steps and tell nothing of them; without any work nobody steps", async () => {
  const several = await group(3);
  const [first, ...others] = several.ranks;
  const one = await alone();
  const wanted = told(await generateTogether(one, tasks(0)));
  expect(told(await generateTogether(first!, tasks(0)))).toEqual(wanted);
  for (const rank of others) {
    expect(rank.steps).toEqual([]);
    expect(rank.engine.stats()).toMatchObject({ steps: 0, sequences: 0 });
    expect(several.statsOf(rank)).toMatchObject({ routedRows: 0, realChoices: 0 });
    expect(several.statsOf(rank).bytesCombined).toBeGreaterThan(0);
  }
  const { realChoices, zeroChoices, routedRows, expertLoads } = several.statsOf(first!);
  const { prefillTokens, decodeTokens } = first!.engine.stats();
  expect(routedRows).toBe(3 * (prefillTokens + decodeTokens)); // layers
  expect(realChoices + zeroChoices).toBe(3 * routedRows); // of each row
  expect(expertLoads.reduce((sum, load) => sum + load)).toBe(realChoices);
});

test("a rank that leaves at once loses the others their group, not their sequences, which the next group goes on with", async () => {
  const one = await alone({ deterministic: true });
  const long = generationOf(promptOf(30), { maxNewTokens: 60, sampling: { minNewTokens: 60 } });
  const wanted = (await generateTogether(one, [{ generation: long, attached: null }]))[0]!;
  const several = await group(3, { deterministic: true });
  const [first, second, third] = several.ranks;
  const { handle } = first!.engine.openSequence({ generation: long, mode: "compute", deadlineMs: 0, reserve: WHOLE });
  first!.engine.submit(planOf([handle, 30, 90]));
  await first!.until("some steps", () => first!.steps.length >= 5);
  await several.seatOf(third!).leaveGroup(true);
  for (const rank of [first!, second!]) {
    await rank.until("the loss", () => rank.events.find(({ kind }) => kind === "group-lost"));
    expect(rank.events.filter(({ kind }) => kind === "group-lost")).toEqual([
      expect.objectContaining({ epoch: several.epoch, guilty: 2 }),
    ]);
  }
  expect(third!.events.filter(({ kind }) => kind === "group-lost")).toEqual([]);
  await several.form([first!, second!]);
  await first!.until("the end", () => {
    const { entries } = first!.steps.at(-1)!;
    return entries[4] === FINISH.length || entries[4] === FINISH.stop;
  });
  expect(first!.steps.flatMap(({ tokens }) => [...tokens])).toEqual(wanted.tokens);
  first!.engine.closeSequence(handle, false);
});

test("a map is switched under load, and the group left in order, without a token changing", async () => {
  const one = await alone({ deterministic: true });
  const wanted = told(await generateTogether(one, tasks(0)));
  const several = await group(2, { deterministic: true });
  const [first, second] = several.ranks;
  const running = Promise.all(several.ranks.map((rank) => generateTogether(rank, tasks(0))));
  const { owners } = contiguousMap(12, 2);
  const turned = { version: 7, owners: owners.map((held, expert) => (expert % 3 === 0 ? [0, 1] : [1 - held[0]!])) };
  await Promise.all(several.ranks.map((rank) => several.seatOf(rank).prepareExperts(turned)));
  for (const rank of several.ranks) several.seatOf(rank).switchExperts(7);
  expect(() => several.seatOf(first!).switchExperts(8)).toThrow(/was not prepared/);
  for (const given of await running) expect(told(given)).toEqual(wanted);
  for (const { steps } of several.ranks) expect(mostStepsSatOut(steps)).toBe(0);
  await Promise.all(several.ranks.map((rank) => several.seatOf(rank).leaveGroup(false)));
  for (const rank of several.ranks) expect(rank.events.filter(({ kind }) => kind === "group-lost")).toEqual([]);
  await several.form([first!, second!]);
  expect(told(await generateTogether(second!, tasks(0)))).toEqual(wanted);
});

test("a group formed at once after one that was left in order is not taken for the old one", async () => {
  const several = await group(2);
  const wanted = told(await generateTogether(several.ranks[0]!, tasks(0)));
  for (let again = 0; again < 40; again++) {
    await Promise.all(several.ranks.map((rank) => several.seatOf(rank).leaveGroup(false)));
    await several.form(again % 2 === 0 ? several.ranks : several.ranks.toReversed());
  }
  for (const rank of several.ranks) expect(rank.events.filter(({ kind }) => kind === "group-lost")).toEqual([]);
  expect(told(await generateTogether(several.ranks[1]!, tasks(0)))).toEqual(wanted);
});

test("rows travel as fp8 where that is chosen: in fewer bytes than what comes back for them", async () => {
  for (const payload of ["bf16", "fp8"] as const) {
    const several = await group(2, { backend: "cpu" }, "auto", payload);
    const given = await Promise.all(several.ranks.map((rank, i) => generateTogether(rank, tasks(i), 64)));
    expect(given.flat().map(({ tokens }) => tokens.length)).not.toContain(0);
    const stats = several.ranks.map((rank) => several.statsOf(rank));
    const dispatched = stats.reduce((sum, { bytesDispatched }) => sum + bytesDispatched, 0);
    const combined = stats.reduce((sum, { bytesCombined }) => sum + bytesCombined, 0);
    expect(dispatched < combined).toBe(payload === "fp8");
  }
});

test("a group that cannot be is refused with the reason", async () => {
  const several = await group(2);
  const [first] = several.ranks;
  const seat = several.seatOf(first!);
  await expect(seat.joinGroup(several.specOf([first!], 0))).rejects.toMatchObject({ code: "bad_state" });
  await seat.leaveGroup(true);
  const good = several.specOf([first!], 0);
  const wrong = (map: Parameters<typeof seat.prepareExperts>[0]) => seat.joinGroup({ ...good, map });
  await expect(wrong({ version: 1, owners: good.map.owners.slice(1) })).rejects.toThrow(/11 experts, the model has 12/);
  await expect(wrong({ version: 1, owners: good.map.owners.with(4, []) })).rejects.toThrow(/expert 4 has no owner/);
  await expect(wrong({ version: 1, owners: good.map.owners.with(4, [0, 0]) })).rejects.toThrow(
    /expert 4 names member 0 twice/,
  );
  await expect(NativeRank.open("decode", { group: several.optionsFor(13) })).rejects.toThrow(
    /13 ranks are more than the model's 12/,
  );
  const coarse = { ...several.optionsFor(2), exchangePayload: "fp8" as const };
  await expect(NativeRank.open("decode", { deterministic: true, group: coarse })).rejects.toThrow(
    /a deterministic engine bf16/,
  );
  await seat.joinGroup(good);
});
