import { expect, test } from "vitest";
import { afterStep, NO_WORK } from "../../decode-node/work-done.ts";

test("rows of a prompt are computed tokens, whatever comes of their last one", () => {
  const first = afterStep(NO_WORK, { prompt: true, rows: 64, tokens: 0, ms: 2 });
  const work = afterStep(first, { prompt: true, rows: 10, tokens: 1, ms: 0.5 });
  expect(work).toEqual({ computedTokens: 74, verifiedDrafts: 0, acceptedDrafts: 0, gpuMs: 2.5 });
});

test("rows of a decode step beyond the first are verified drafts, its tokens beyond the first accepted ones", () => {
  let work = NO_WORK;
  for (const [rows, tokens] of [
    [1, 1],
    [3, 1],
    [3, 2],
    [3, 3],
    [2, 0],
  ] as const)
    work = afterStep(work, { prompt: false, rows, tokens, ms: 1 });
  expect(work).toEqual({ computedTokens: 0, verifiedDrafts: 7, acceptedDrafts: 3, gpuMs: 5 });
});
