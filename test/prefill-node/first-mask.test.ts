import { afterEach, beforeEach, expect, test } from "vitest";
import { type Constraint, maskOf } from "#protocol/constraint.ts";
import { generationOf, promptOf } from "../support/generation.ts";
import { NodeWorld } from "../support/node-world.ts";

let world: NodeWorld;
beforeEach(() => {
  world = new NodeWorld();
});
afterEach(async () => {
  await world.close();
});

const ONLY = 77;
const WORDS = 2048 / 32;

function constraint(first: Uint32Array | null): Constraint {
  return {
    ...{ freeUntil: null, prefix: new Int32Array(), suffix: new Int32Array(), ends: Int32Array.of(2) },
    grammar: { kind: "ebnf", text: 'root ::= "a"' },
    first: first === null ? null : Int32Array.from(first),
  };
}

/** The first token that a prefill rank tells of a prompt. */
async function firstToken(first: Uint32Array | null, generated = 0): Promise<number | null> {
  const [p, d] = [await world.prefill(), await world.decode()];
  const head = world.gateway.head();
  const tokens = promptOf(150 + generated);
  const generation = generationOf(tokens, { promptLength: 150, constraint: constraint(first) });
  const reserved = await world.settle(world.gateway.reserve(d.rankId, d.epoch, head, generation));
  if (reserved.kind !== "reserved") throw new Error("not reserved");
  await world.settle(world.gateway.prefill(p.rankId, p.epoch, head, generation, reserved.reservation));
  await world.until(() => world.gateway.outcomes.length > 0);
  await world.settle(world.gateway.cancel(d.rankId, head));
  const [outcome] = world.gateway.outcomes;
  if (outcome?.kind !== "prefill-done") throw new Error("not done");
  return outcome.firstToken;
}

test("a constraint that says what the first token may be has the prefill rank choose it", async () => {
  expect(await firstToken(maskOf(WORDS, [ONLY], "only"))).toBe(ONLY);
});

test("one that does not leaves it to the decode rank", async () => {
  expect(await firstToken(null)).toBeNull();
});

test("and so does one whose text was begun before", async () => {
  expect(await firstToken(maskOf(WORDS, [ONLY], "only"), 3)).toBeNull();
});
