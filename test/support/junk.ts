/** A small deterministic generator: the same seed, the same bodies. */
export function randomOf(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** What nobody should send. */
export const JUNK: readonly unknown[] = [
  ...[null, true, false, 0, -1, 1.5, 1e308, 9007199254740992, "", "auto", "\ud800", "<longcat_user>", "a".repeat(3000)],
  ...[[], [null], [[]], [1, "a"], ["a", ["b"]], [1e9], {}, { type: "text" }, { type: "function", function: {} }],
  ...[
    { role: "user", content: "x" },
    { "": 1 },
    JSON.parse('{"__proto__": {"a": 1}}'),
    { constructor: 1, toString: 2 },
  ],
];

/** Replaces or removes one value somewhere inside. */
export function mutate(value: unknown, random: (below: number) => number): unknown {
  if (typeof value !== "object" || value === null || random(4) === 0) return JUNK[random(JUNK.length)];
  const entries = Object.entries(value);
  if (entries.length === 0) return JUNK[random(JUNK.length)];
  const at = random(entries.length);
  const changed = entries.map(([key, item], i) => [key, i === at ? mutate(item, random) : item] as const);
  if (Array.isArray(value)) return changed.map(([, item]) => item);
  return Object.fromEntries(random(6) === 0 ? changed.filter((_, i) => i !== at) : changed);
}
