import type { ExpectedAnswer } from "./expected-answer.ts";
import type { Call } from "./sim-client.ts";
import { REQUEST_MS, SIM_MODEL, type SimControlPlane, type SimWorld } from "./sim-world.ts";

/** Something that may never happen has happened. */
export class InvariantBroken extends Error {
  override readonly name = "InvariantBroken";
  /** Which one: the part of the message that does not change with the circumstances. */
  readonly invariant: string;

  constructor(invariant: string, detail: string) {
    super(`${invariant}: ${detail}`);
    this.invariant = invariant;
  }
}

/** The whole of every pool is looked at once in so many events; what shows by itself is looked at after each. */
const AUDIT_EVERY = 64;
/** Between the moment at which the control plane ends a request and the one at which its client has read so. */
const TOLD_MS = 1_000;
/** Ends that a request may come to when things fail. */
const ALLOWED: ReadonlySet<string> = new Set([
  "no_worker",
  "capacity_timeout",
  "worker_lost",
  "transfer_failed",
  "reservation_expired",
  "stale_epoch",
  "unknown_request",
  "timeout",
  "deadline_exceeded",
  "bus_unavailable",
  "cancelled",
  "busy",
  "draining",
  "context_length_exceeded",
]);

/** Pages add up, no page is read by another request, no node gives up. Called after every event. */
export function checkEngines({ target, time }: SimWorld): void {
  for (const { engine, failure, link, ended } of target.processes) {
    if (failure !== null) {
      const why = failure instanceof Error ? (failure.stack ?? failure.message) : String(failure);
      throw new InvariantBroken("a node failed", `${link.name}: ${why}`);
    }
    if (engine === null) continue;
    if (engine.violation !== null) throw new InvariantBroken("pages", `${link.name}: ${engine.violation}`);
    if (ended || time.ran % AUDIT_EVERY !== 0) continue;
    const broken = engine.checkInvariants();
    if (broken !== null) throw new InvariantBroken("pages", `${link.name}: ${broken}`);
  }
}

/** What came so far is a beginning of what has to come. */
export function checkText({ request, text }: Call, expected: ExpectedAnswer): void {
  if (expected.text.startsWith(text)) return;
  throw new InvariantBroken("tokens", `request ${request.number} was told ${shown(text)}, not ${shown(expected.text)}`);
}

/**
 * One answer, in time, right or a failure that may happen. `orphaned`: its control plane has died; `frozenMs`: so long at most
 * it stood still meanwhile, and its clock with it.
 */
export function checkAnswer(
  call: Call,
  expected: ExpectedAnswer,
  { calm, orphaned, frozenMs }: { readonly calm: boolean; readonly orphaned: boolean; readonly frozenMs: number },
): void {
  const { request, answer, sentMs, answeredMs } = call;
  if (answer === null) throw new InvariantBroken("answers", `request ${request.number} has none`);
  const tookMs = Math.round(answeredMs - sentMs);
  if (answer.kind !== "broken" && tookMs > REQUEST_MS + TOLD_MS + frozenMs) {
    throw new InvariantBroken("deadlines", `request ${request.number} was answered after ${tookMs} ms`);
  }
  checkText({ ...call, text: answer.text }, expected);
  if (answer.kind === "broken" && !orphaned) {
    throw new InvariantBroken("answers", `the connection of request ${request.number} ended without one`);
  }
  if (answer.kind === "ok") {
    const same = answer.text === expected.text && answer.finish === expected.finish;
    const counted = expected.stop === null ? answer.tokens === expected.tokens : answer.tokens <= expected.tokens;
    if (same && counted) return;
    const said = `${shown(answer.text)}, ${answer.finish}, ${answer.tokens} tokens`;
    const right = `${shown(expected.text)}, ${expected.finish}, ${expected.tokens} tokens`;
    throw new InvariantBroken("tokens", `request ${request.number} was answered ${said}; right is ${right}`);
  }
  const bad = answer.kind === "error" && (calm || !ALLOWED.has(answer.code));
  if (bad) throw new InvariantBroken("failures", `request ${request.number} failed as ${answer.code} (${tookMs} ms)`);
}

/** What is held though nobody is served any more, in words. */
export function heldIn({ target, controlPlanes }: SimWorld): readonly string[] {
  const held: string[] = [];
  for (const worker of target.living) {
    const { engine, link } = worker;
    if (worker.held > 0) held.push(`${link.name} holds ${worker.held} blocks`);
    if ((engine?.stats().sequences ?? 0) > 0) held.push(`${link.name} has open sequences`);
  }
  for (const { thread, plane, link } of controlPlanes) {
    if (thread.dead) continue;
    for (const [what, count] of Object.entries(plane.holdings)) {
      if (count !== 0) held.push(`${link.name} counts ${count} ${what}`);
    }
  }
  return held;
}

/** Metrics equal what clients got. */
export async function checkCounts(number: number, { metrics }: SimControlPlane, calls: readonly Call[]): Promise<void> {
  const text = await metrics.text();
  const counted = { ok: 0, all: 0, tokens: 0 };
  for (const line of text.split("\n")) {
    const value = Number(line.slice(line.lastIndexOf(" ") + 1));
    if (line.startsWith("margay_requests_total{")) {
      counted.all += value;
      if (line.includes('outcome="ok"')) counted.ok += value;
    }
    if (line.startsWith(`margay_generated_tokens_total{model="${SIM_MODEL}"`)) counted.tokens += value;
  }
  const mine = calls.filter((call) => call.gateway === number);
  const ok = mine.flatMap(({ answer }) => (answer?.kind === "ok" ? [answer] : []));
  const tokens = ok.reduce((sum, answer) => sum + answer.tokens, 0);
  // A client may leave before anybody has read its request, or in the moment in which that ends.
  const left = mine.filter(({ answer }) => answer?.kind === "left").length;
  const right =
    counted.all <= mine.length &&
    counted.all >= mine.length - left &&
    counted.ok >= ok.length &&
    counted.ok <= ok.length + left;
  const said = `${counted.all} requests, ${counted.ok} of them well, ${counted.tokens} tokens`;
  const seen = `${mine.length} (${left} left), ${ok.length}, ${tokens}`;
  if (!right || (counted.ok === ok.length && counted.tokens !== tokens)) {
    throw new InvariantBroken("counts", `gateway-${number} counted ${said}; clients saw ${seen}`);
  }
}

function shown(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}... (${text.length})` : text);
}
