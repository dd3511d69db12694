import type { WorkerId } from "#protocol/ids.ts";
import type { Settled } from "../flow/request-flow.ts";

/** One entry of `server-timing`. */
export function timing(name: string, ms: number): string {
  return `${name};dur=${ms.toFixed(2)}`;
}

/** The headers that name workers. */
export function workerHeaders(prefill: WorkerId | null, decode: WorkerId | null): Record<string, string> {
  return {
    ...(prefill === null ? {} : { "x-margay-prefill": prefill }),
    ...(decode === null ? {} : { "x-margay-decode": decode }),
  };
}

/** The workers that took part, each once. The prefill worker of a prompt that its decode worker computed is that one. */
function workersOf(settled: readonly Settled[]): { readonly prefill: string; readonly decode: string } {
  const known = (ids: (WorkerId | null)[]) => [...new Set(ids.filter((id) => id !== null))].join(", ");
  return {
    prefill: known(settled.map((one) => one.prefill ?? one.decode)),
    decode: known(settled.map((one) => one.decode)),
  };
}

function longest(settled: readonly Settled[]): Settled["timings"] {
  const most = (pick: (timings: Settled["timings"]) => number) => Math.max(...settled.map((one) => pick(one.timings)));
  return {
    queueMs: most((timings) => timings.queueMs),
    prefillMs: most((timings) => timings.prefillMs),
    transferMs: most((timings) => timings.transferMs),
    decodeMs: most((timings) => timings.decodeMs),
  };
}

/** How many drafts were right, over all choices: an entry of `server-timing`, empty where there were none. */
function draftsTold(settled: readonly Settled[]): readonly string[] {
  const verified = settled.reduce((sum, { drafts }) => sum + drafts.verified, 0);
  const accepted = settled.reduce((sum, { drafts }) => sum + drafts.accepted, 0);
  return verified === 0 ? [] : [`drafts;desc="${accepted} of ${verified}"`];
}

/** Headers of a unary answer: who worked on it and how long each phase took (of several choices: the longest). */
export function storyHeaders(settled: readonly Settled[]): Record<string, string> {
  const { prefill, decode } = workersOf(settled);
  const timings = longest(settled);
  const attempts = Math.max(...settled.map((one) => one.attempts));
  return {
    ...(prefill === "" ? {} : { "x-margay-prefill": prefill }),
    ...(decode === "" ? {} : { "x-margay-decode": decode }),
    // Told only where something went wrong on the way: how many placements it took.
    ...(attempts > 1 ? { "x-margay-attempts": String(attempts) } : {}),
    "server-timing": [
      timing("queue", timings.queueMs),
      timing("prefill", timings.prefillMs),
      timing("transfer", timings.transferMs),
      timing("decode", timings.decodeMs),
      ...draftsTold(settled),
    ].join(", "),
  };
}

/** The same for a stream: the text of its final comment. */
export function storyComment(settled: readonly Settled[]): string {
  return Object.entries(storyHeaders(settled))
    .map(([name, value]) => `${name}: ${value}`)
    .join(" | ");
}
