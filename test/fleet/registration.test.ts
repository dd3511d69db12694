import { describe, expect, test } from "vitest";
import type { RankId, WorkerId } from "#protocol/ids.ts";
import type { Hello } from "#protocol/worker.ts";
import { judgeHello, lacksPartner } from "../../control-plane/fleet/registration.ts";
import { beatOf, cardOf, fleetOf } from "../support/fleet-of.ts";

const hello = (changes: Partial<Hello> = {}): Hello => ({
  ...{ kind: "hello", workerId: "w" as WorkerId, rankId: "w-r1" as RankId, rank: 1, ranks: 2, role: "decode" },
  ...{ model: cardOf(), experts: 12, clockMs: 0 },
  ...changes,
});
const nobody = fleetOf([]);

describe("a rank is refused", () => {
  test("when its worker has more ranks than the model has experts", () => {
    expect(judgeHello(nobody, hello({ ranks: 12 }))).toBeNull();
    expect(judgeHello(nobody, hello({ ranks: 13 }))).toBe(
      "w-r1 would be one of 13 ranks: more than the model's 12 experts",
    );
    expect(judgeHello(nobody, hello({ experts: 0 }))).toMatch(/more than the model's 0 experts/);
    expect(judgeHello(nobody, hello({ rank: 0, ranks: 1, experts: 0 }))).toBeNull();
    expect(judgeHello(nobody, hello({ rank: 2 }))).toBe("w-r1 is rank 2 of a worker of 2");
  });

  test("when its model, its worker's size or its role are not those of the worker's other ranks", () => {
    const fleet = fleetOf([beatOf("w", { role: "decode", ranks: 2, model: cardOf() })]);
    expect(judgeHello(fleet, hello())).toBeNull();
    expect(judgeHello(fleet, hello({ model: cardOf({ modelHash: "another-hash-that-is-long" }) }))).toBe(
      "w-r1 cannot join w-r0: its model hash is another-hash, the other's hash-1",
    );
    expect(judgeHello(fleet, hello({ ranks: 3 }))).toMatch(/has 3 decode ranks, w-r0 says 2 decode ranks/);
    expect(judgeHello(fleet, hello({ role: "prefill" }))).toMatch(/has 2 prefill ranks, w-r0 says 2 decode ranks/);
  });

  test.each([
    ["model hash", cardOf({ modelHash: "hash-2" }), "its model hash is hash-1, the other's hash-2"],
    ["settings", cardOf({ numerics: "deterministic" }), "its numerics are plain, the other's deterministic"],
    ["dtype or shape", cardOf({ layout: "fp32-4x64" }), "its pages have the layout bf16-4x64, the other's fp32-4x64"],
    ["page size", cardOf({ pageBytes: 4096 }), "its pages have 9216 bytes, the other's 4096"],
  ])("when no rank of the other role could exchange KV with it: %s", (_, model, reason) => {
    const fleet = fleetOf([beatOf("p1", { model })]);
    expect(lacksPartner(fleet, hello(), [])).toBe(`KV cannot pass between w-r1 and p1-r0: ${reason}`);
  });

  test("but not for ranks that leave, are lost, are of another model, or where another one fits", () => {
    const other = { model: cardOf({ modelHash: "hash-2" }) };
    expect(lacksPartner(fleetOf([beatOf("p1", { ...other, state: "draining" })]), hello(), [])).toBeNull();
    expect(lacksPartner(fleetOf([beatOf("p1", other)], { p1: { state: "lost" } }), hello(), [])).toBeNull();
    expect(lacksPartner(fleetOf([beatOf("p1", other), beatOf("p2")]), hello(), [])).toBeNull();
    const elsewhere = cardOf({ name: "large" as never, modelHash: "hash-2" });
    expect(lacksPartner(fleetOf([beatOf("p1", { model: elsewhere })]), hello(), [])).toBeNull();
  });

  test("nor where another one of its kind was put off as well: both sides of a new version join together", () => {
    const fleet = fleetOf([beatOf("p1"), beatOf("d1", { role: "decode" })]);
    const model = cardOf({ modelHash: "hash-2" });
    const decode = hello({ model });
    const prefill = hello({ workerId: "v" as never, rankId: "v-r0" as never, rank: 0, role: "prefill", model });
    expect(lacksPartner(fleet, decode, [])).not.toBeNull();
    expect(
      lacksPartner(fleet, decode, [decode, { ...prefill, model: cardOf({ modelHash: "hash-3" }) }]),
    ).not.toBeNull();
    expect(lacksPartner(fleet, decode, [prefill])).toBeNull();
    expect(lacksPartner(fleet, prefill, [decode])).toBeNull();
  });
});
