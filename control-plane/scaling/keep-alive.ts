/**
 * How long the workers of a model stay without a request, learned from the gaps between requests: the hybrid histogram of
 * Shahrad et al. 2020 (Serverless in the Wild, section 4.2), pure.
 *
 * Gaps are counted in bins of equal ratio. Where they gather in few bins their tail says how long to keep workers, and
 * their head whether to stop them at once and start them again shortly before the next request is due. Until there are
 * enough gaps, and where they say nothing, the fixed time-out holds.
 */
export interface GapHistogram {
  /** Gaps per bin. */
  readonly counts: readonly number[];
  /** Gaps longer than the last bin. */
  readonly beyond: number;
}

export interface KeepAliveRules {
  /** The time-out that holds while nothing is learned. */
  readonly fixedMs: number;
  /** Time-outs are learned; false: the fixed one always holds. */
  readonly learned: boolean;
}

/** When the workers of an idle model are loaded: from its last request, or from `wakeMs` of idleness on, until `untilMs`. */
export interface KeepAlive {
  /** Workers stop after so long, however it goes on. */
  readonly lingerMs: number;
  /** null: they are not started before a request comes. Else they are, after so long. */
  readonly wakeMs: number | null;
  /** Those that were started for a request that does not come stop after so long. */
  readonly untilMs: number;
  readonly reason: string;
}

const FIRST_MS = 1_000;
const RATIO = 1.15;
const BINS = 70;
/** Shorter pauses are part of the traffic. */
export const LEAST_GAP_MS = FIRST_MS;
/** Fewer gaps say nothing. */
const LEAST_GAPS = 10;
/** Coefficient of variation of the counts below which gaps are anywhere (the paper's limit). */
const GATHERED = 2;
/** More gaps than this beyond the last bin: it is too short for this model. */
const MOST_BEYOND = 0.5;
const [HEAD, TAIL] = [0.05, 0.99];
const MARGIN = 0.1;
/** Workers are not stopped for a pause in which a start is not made up for. */
const STARTS_WORTH = 10;
/** As counts pass this, all of them are halved: what was long ago counts less. */
const MOST_GAPS = 2_000;

export const NO_GAPS: GapHistogram = { counts: [], beyond: 0 };

export function withGap(gaps: GapHistogram, ms: number): GapHistogram {
  const bin = Math.max(0, Math.floor(Math.log(ms / FIRST_MS) / Math.log(RATIO)));
  if (bin >= BINS) return fresher({ ...gaps, beyond: gaps.beyond + 1 });
  const counts = Array.from({ length: BINS }, (_, i) => (gaps.counts[i] ?? 0) + (i === bin ? 1 : 0));
  return fresher({ ...gaps, counts });
}

/** What two watched, one after the other. */
export function gapsTogether(before: GapHistogram, after: GapHistogram): GapHistogram {
  const counts = Array.from({ length: BINS }, (_, i) => (before.counts[i] ?? 0) + (after.counts[i] ?? 0));
  return fresher({ counts, beyond: before.beyond + after.beyond });
}

function fresher(gaps: GapHistogram): GapHistogram {
  if (totalOf(gaps) <= MOST_GAPS) return gaps;
  return { counts: gaps.counts.map((count) => count >> 1), beyond: gaps.beyond >> 1 };
}

export function keepAliveOf(rules: KeepAliveRules, gaps: GapHistogram, coldStartMs: number): KeepAlive {
  const { fixedMs } = rules;
  const fixed = (why: string): KeepAlive => ({
    ...{ lingerMs: fixedMs, wakeMs: null, untilMs: fixedMs },
    reason: `${seconds(fixedMs)} as set: ${why}`,
  });
  if (!rules.learned) return fixed("nothing is to be learned");
  const total = totalOf(gaps);
  if (total < LEAST_GAPS) return fixed(`${total} pauses were seen, fewer than ${LEAST_GAPS}`);
  if (gaps.beyond > MOST_BEYOND * total) return fixed("most pauses are too long to keep anything for");
  if (variation(gaps.counts) < GATHERED) return fixed("pauses are of any length");
  const headMs = edge(gaps, HEAD, 0) * (1 - MARGIN);
  const tailMs = edge(gaps, TAIL, 1) * (1 + MARGIN);
  const leastMs = Math.min(fixedMs, STARTS_WORTH * coldStartMs);
  const share = `${Math.round(100 * TAIL)} % of ${total} pauses`;
  if (headMs - coldStartMs > 2 * leastMs && headMs > fixedMs) {
    const wakeMs = headMs - coldStartMs;
    const reason = `stopped after ${seconds(leastMs)} and back after ${seconds(wakeMs)}: ${share} end between ${seconds(headMs)} and ${seconds(tailMs)}`;
    return { lingerMs: leastMs, wakeMs, untilMs: tailMs, reason };
  }
  const keepMs = Math.max(leastMs, tailMs);
  const reason = `${seconds(keepMs)}: ${share} are no longer than ${seconds(tailMs)}`;
  return { lingerMs: keepMs, wakeMs: null, untilMs: keepMs, reason };
}

/** Whether workers of a model that is idle for so long stay, are started, or may go. */
export function idleVerdict({ lingerMs, wakeMs, untilMs }: KeepAlive, idleMs: number): "stay" | "wake" | "go" {
  if (idleMs < lingerMs) return "stay";
  return wakeMs !== null && idleMs >= wakeMs && idleMs < untilMs ? "wake" : "go";
}

function totalOf({ counts, beyond }: GapHistogram): number {
  return counts.reduce((sum, count) => sum + count, beyond);
}

function variation(counts: readonly number[]): number {
  const mean = counts.reduce((sum, count) => sum + count, 0) / BINS;
  const square = counts.reduce((sum, count) => sum + (count - mean) ** 2, 0) / BINS;
  return mean === 0 ? 0 : Math.sqrt(square) / mean;
}

/** Lower (0) or upper (1) edge of the bin in which a share of the gaps that were counted is reached. */
function edge({ counts }: GapHistogram, share: number, side: 0 | 1): number {
  const wanted = share * counts.reduce((sum, count) => sum + count, 0);
  let sum = 0;
  const bin = counts.findIndex((count) => {
    sum += count;
    return count > 0 && sum >= wanted;
  });
  return FIRST_MS * RATIO ** (bin + side);
}

function seconds(ms: number): string {
  return `${Math.round(ms / 1000)} s`;
}
