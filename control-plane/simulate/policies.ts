import { type CapacityRules, type CapacityState, newRolePlan, planCapacity } from "../scaling/capacity-plan.ts";
import { LATE_MS } from "../scaling/traffic-meter.ts";
import { type FleetSignals, type Groups, PERIOD_MS, type Policy } from "./fleet-run.ts";

/** A value over the last `spanMs`, looked at every PERIOD_MS. */
class Window {
  readonly #values: number[] = [];
  readonly #most: number;

  constructor(spanMs: number) {
    this.#most = Math.max(1, Math.round(spanMs / PERIOD_MS));
  }

  add(value: number): void {
    this.#values.push(value);
    if (this.#values.length > this.#most) this.#values.shift();
  }

  get sum(): number {
    return this.#values.reduce((sum, value) => sum + value, 0);
  }

  get mean(): number {
    return this.#values.length === 0 ? 0 : this.sum / this.#values.length;
  }

  get largest(): number {
    return Math.max(0, ...this.#values);
  }

  get seconds(): number {
    return (this.#values.length * PERIOD_MS) / 1000;
  }
}

/**
 * Knative's autoscaler by its published rules, one for each role: mean concurrency over 60 s against a target per replica; over
 * 6 s in panic, which begins when that asks for twice what is ready, lasts 60 s and never shrinks; at most halved at a time.
 */
export function knativePolicy(rules: {
  readonly prefill: number;
  readonly decode: number;
  /** `scale-down-delay`: never fewer than the most that was asked for within so long. */
  readonly delayMs: number;
}): Policy {
  const prefill = knativeRole(rules.prefill, rules.delayMs);
  const decode = knativeRole(rules.decode, rules.delayMs);
  return (signals) => ({
    prefill: prefill(signals.nowMs, signals.queued + signals.computing, signals.ready.prefill, signals.wanted.prefill),
    decode: decode(signals.nowMs, signals.streams + signals.queuedStreams, signals.ready.decode, signals.wanted.decode),
  });
}

function knativeRole(target: number, delayMs: number) {
  const asked = new Window(delayMs);
  const stable = new Window(60_000);
  const panic = new Window(6_000);
  let panicUntilMs = Number.NEGATIVE_INFINITY;
  return (nowMs: number, concurrency: number, ready: number, wanted: number): number => {
    stable.add(concurrency);
    panic.add(concurrency);
    const calm = Math.ceil(stable.mean / target);
    const urgent = Math.ceil(panic.mean / target);
    if (urgent >= 2 * Math.max(1, ready)) panicUntilMs = nowMs + 60_000;
    const panics = nowMs < panicUntilMs;
    const desired = panics ? Math.max(wanted, urgent) : Math.max(1, Math.ceil(ready / 2), calm);
    asked.add(desired);
    return delayMs === 0 ? desired : asked.largest;
  };
}

/**
 * The horizontal pod autoscaler on the length of the queue per prefill replica, decode replicas in fixed proportion: every 15 s
 * the replicas times metric over target, left alone within 10 %; at most the larger of 4 more and twice as many per step;
 * shrinking to the most that was asked for within a window.
 */
export function hpaPolicy(rules: {
  readonly target: number;
  readonly decodePerPrefill: number;
  /** `stabilizationWindowSeconds`, 300 by default. */
  readonly windowMs: number;
}): Policy {
  const asked = new Window(rules.windowMs);
  let nextMs = 0;
  let groups: Groups | null = null;
  return ({ nowMs, queued, queuedStreams, wanted }) => {
    groups ??= wanted;
    const current = groups.prefill;
    const ratio = (queued + queuedStreams) / current / rules.target;
    const desired = Math.abs(ratio - 1) <= 0.1 ? current : Math.max(1, Math.ceil(current * ratio));
    asked.add(desired);
    if (nowMs < nextMs) return groups;
    nextMs = nowMs + 15_000;
    const most = Math.max(current + 4, current * 2);
    const prefill = desired > current ? Math.min(desired, most) : Math.min(current, asked.largest);
    groups = { prefill, decode: Math.max(1, Math.ceil(prefill * rules.decodePerPrefill)) };
    return groups;
  };
}

/** What the planner of the product is told of a simulated fleet, measured as the product would. */
export function plannedPolicy(
  rules: CapacityRules,
  windows: { readonly shortMs: number; readonly longMs: number },
  onDecision: (nowMs: number, state: CapacityState) => void = () => {},
): Policy {
  const short = new Window(windows.shortMs);
  const long = new Window(windows.longMs);
  const shapes = new Window(windows.longMs);
  const work = new Window(windows.longMs);
  const context = new Window(windows.longMs);
  const first = new Window(LATE_MS);
  const late = new Window(LATE_MS);
  let state: CapacityState | null = null;
  return (signals: FleetSignals) => {
    const { nowMs, model, arrived, wanted } = signals;
    for (const window of [short, long]) window.add(arrived);
    shapes.add(signals.arrivedOutput);
    work.add(signals.arrivedPrefillMs / 1000);
    context.add(signals.arrivedContext);
    first.add(signals.firstTokens);
    late.add(signals.lateTokens);
    state ??= { prefill: newRolePlan(wanted.prefill), decode: newRolePlan(wanted.decode) };
    const known = long.sum > 0;
    const meanContext = known ? context.sum / long.sum : 0;
    const streamsPerGroup = known ? model.mostStreams(meanContext) : null;
    const tokenMs = streamsPerGroup === null ? null : model.tokenMs(streamsPerGroup, streamsPerGroup * meanContext);
    state = planCapacity(
      rules,
      {
        nowMs,
        arrivals: known ? { short: short.sum / short.seconds, long: long.sum / long.seconds } : null,
        prefillSeconds: known ? work.sum / long.sum : null,
        prefillVariation: 1,
        queuedSeconds: signals.queuedPrefillMs / 1000,
        oldestWaitMs: signals.oldestMs,
        late: first.sum === 0 ? null : late.sum / first.sum,
        streams: signals.streams + signals.queuedStreams,
        streamSeconds: tokenMs === null ? null : ((shapes.sum / long.sum) * tokenMs) / 1000,
        streamsPerGroup,
        coldStartMs: model.spec.coldStartMs,
      },
      state,
    );
    onDecision(nowMs, state);
    return { prefill: state.prefill.groups, decode: state.decode.groups };
  };
}
