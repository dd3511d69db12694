/**
 * What changes between answers of /v1/fleet: rates of each rank and of all, over the last seconds.
 *
 * A rank that began anew (another epoch, or counters that fell) begins without rates.
 */
const KEPT = 90;
const WINDOW_MS = 3_000;

export class FleetRates {
  /** @type {Map<string, {at: number, rank: any}[]>} */
  #seen = new Map();
  /** @type {Record<string, number[]>} lines of the last minute and a half, one point an answer */
  lines = { waiting: [], prompt: [], tokens: [], moved: [] };

  /** @param {any} fleet an answer of /v1/fleet @param {number} atMs when it came */
  add(fleet, atMs) {
    const seen = new Map();
    for (const rank of fleet.ranks) {
      const past = (this.#seen.get(rank.rank) ?? []).filter(
        ({ at, rank: old }) => old.epoch === rank.epoch && atMs - at < WINDOW_MS + 1_500,
      );
      seen.set(rank.rank, [...past, { at: atMs, rank }]);
    }
    this.#seen = seen;
    const sum = (role, pick) =>
      fleet.ranks.filter((rank) => rank.role === role).reduce((all, rank) => all + pick(this.of(rank.rank)), 0);
    this.#point(
      "waiting",
      fleet.models.reduce((all, { waiting }) => all + waiting, 0),
    );
    this.#point(
      "prompt",
      sum("prefill", (rates) => rates.promptPerSecond),
    );
    this.#point(
      "tokens",
      sum("decode", (rates) => rates.tokensPerSecond),
    );
    this.#point(
      "moved",
      sum("decode", (rates) => rates.bytesPerSecond),
    );
  }

  /** @param {string} id of a rank */
  of(id) {
    const all = this.#seen.get(id) ?? [];
    const [from, to] = [all[0], all.at(-1)];
    const seconds = from === undefined ? 0 : (to.at - from.at) / 1000;
    if (seconds <= 0) return { promptPerSecond: 0, tokensPerSecond: 0, bytesPerSecond: 0, batch: 0, busy: 0 };
    const gained = (name) => Math.max(0, to.rank[name] - from.rank[name]);
    const steps = gained("steps");
    return {
      promptPerSecond: gained("prompt_tokens") / seconds,
      tokensPerSecond: gained("generated_tokens") / seconds,
      bytesPerSecond: gained("kv_bytes") / seconds,
      /** Rows of a step: prompt tokens on P, streams on D. */
      batch: steps === 0 ? 0 : gained(to.rank.role === "prefill" ? "prompt_tokens" : "stream_steps") / steps,
      busy: Math.min(1, gained("busy_ms") / 1000 / seconds),
    };
  }

  #point(name, value) {
    this.lines[name] = [...this.lines[name], value].slice(-KEPT);
  }
}
