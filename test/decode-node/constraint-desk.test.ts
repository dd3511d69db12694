import { expect, test } from "vitest";
import type { Constraint } from "#protocol/constraint.ts";
import type { TextListener } from "#service/grammar/grammars.ts";
import { type ConstrainedText, ConstraintDesk } from "../../decode-node/constraint-desk.ts";

const VOCABULARY = 70;
const THINK_END = 8;

/** A grammar whose text is the tokens 40, 41, ... as many as there are; told what was opened and pushed. */
class FakeGrammars {
  readonly opened: { readonly ends: readonly number[]; readonly tokens: readonly number[] }[] = [];
  readonly pushed: number[] = [];
  closed = 0;
  listener: TextListener | null = null;

  open(_grammar: Constraint["grammar"], ends: readonly number[], tokens: readonly number[], listener: TextListener) {
    this.opened.push({ ends, tokens });
    this.listener = listener;
    return { push: (token: number) => void this.pushed.push(token), close: () => void this.closed++ };
  }
  async close(): Promise<void> {}
}

function constraint(
  changes: Partial<{ freeUntil: number | null; prefix: number[]; suffix: number[] }> = {},
): Constraint {
  return {
    freeUntil: changes.freeUntil ?? null,
    prefix: Int32Array.from(changes.prefix ?? []),
    grammar: { kind: "ebnf", text: "root ::= x" },
    suffix: Int32Array.from(changes.suffix ?? []),
    first: null,
    ends: Int32Array.of(2, 3),
  };
}

const allowed = (mask: Uint32Array): number[] =>
  Array.from({ length: VOCABULARY }, (_, id) => id).filter((id) => ((mask[id >> 5]! >>> (id & 31)) & 1) === 1);

function begin(bound: Constraint, tokens: readonly number[] = []) {
  const grammars = new FakeGrammars();
  const masks: number[][] = [];
  const faults: string[] = [];
  const text: ConstrainedText = new ConstraintDesk(grammars, VOCABULARY).begin(bound, tokens, {
    allow: (mask) => void masks.push(allowed(mask)),
    fail: (sentence) => void faults.push(sentence),
  });
  return { grammars, masks, faults, text };
}

test("a text is free up to its mark, except for ending; then come prefix, grammar, suffix and one of the ends", () => {
  const { grammars, masks, text } = begin(constraint({ freeUntil: THINK_END, prefix: [50, 51], suffix: [60, 61] }));
  expect(masks).toEqual([Array.from({ length: VOCABULARY }, (_, id) => id).filter((id) => id !== 2 && id !== 3)]);
  text.push(33);
  expect(masks).toHaveLength(2);
  for (const token of [THINK_END, 50, 51]) text.push(token);
  expect(masks.slice(2)).toEqual([[50], [51]]);
  expect(grammars.opened).toEqual([{ ends: [60], tokens: [] }]);
  text.push(40);
  expect(grammars.pushed).toEqual([40]);
  expect(masks).toHaveLength(4);
  text.push(60);
  text.push(61);
  expect(grammars.closed).toBe(1);
  expect(masks.slice(4)).toEqual([[61], [2, 3]]);
});

test("without a suffix the grammar's text ends with one of the ends", () => {
  const { grammars, masks, text } = begin(constraint());
  expect(grammars.opened).toEqual([{ ends: [2, 3], tokens: [] }]);
  grammars.listener!.onMask(Uint32Array.of(0, 1 << 8, 0));
  expect(masks).toEqual([[40]]);
  text.push(40);
  text.close();
  grammars.listener!.onMask(Uint32Array.of(4, 0, 0));
  expect(masks).toHaveLength(1);
});

test("a text that was begun elsewhere goes on where it is", () => {
  const bound = constraint({ freeUntil: THINK_END, prefix: [50], suffix: [60, 61] });
  expect(begin(bound, [33, 34]).masks[0]).toHaveLength(VOCABULARY - 2);
  expect(begin(bound, [33, THINK_END]).masks).toEqual([[50]]);
  expect(begin(bound, [33, THINK_END, 50, 40, 41]).grammars.opened).toEqual([{ ends: [60], tokens: [40, 41] }]);
  expect(begin(bound, [33, THINK_END, 50, 40, 60]).masks).toEqual([[61]]);
  expect(begin(bound, [33, THINK_END, 50, 40, 60, 61]).masks).toEqual([[2, 3]]);
});

test("a fault of the grammar, or a mask of nothing, ends the text once", () => {
  const one = begin(constraint());
  one.grammars.listener!.onFault("the thread is gone");
  one.grammars.listener!.onFault("again");
  one.text.push(1);
  expect(one.faults).toEqual(["the thread is gone"]);
  const other = begin(constraint());
  other.grammars.listener!.onMask(new Uint32Array(3));
  expect(other.faults).toEqual(["no token of the vocabulary can go on"]);
});
