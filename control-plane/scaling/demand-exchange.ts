import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import { GatewayDemand, MOST_SERVED, type ModelDemand, type ServedShare, type Traffic } from "#protocol/demand.ts";
import type { GatewayId, ModelName } from "#protocol/ids.ts";
import { subjects } from "#protocol/subjects.ts";
import { GATEWAY_BEAT_MS, OWNER_TIMEOUT_MS } from "#protocol/worker.ts";
import type { Clock, Timer } from "#service/clock.ts";
import type { Demand } from "./planner.ts";

export interface DemandExchangeParts {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly gatewayId: GatewayId;
  readonly models: readonly ModelName[];
  /** The demand of this process's own requests. */
  readonly own: (model: ModelName) => Omit<ModelDemand, "model">;
  /** Another control plane told of requests that wait. */
  readonly onWaiting: () => void;
  /** Another control plane served a tenant so much since it told of it last. */
  readonly onServed: (model: ModelName, share: ServedShare) => void;
}

interface Told {
  readonly heardMs: number;
  readonly models: ReadonlyMap<ModelName, ModelDemand>;
}

/** Arrivals within this time are told together. */
const TOGETHER_MS = 20;
/** What was told longer ago is no measure of now. */
const FRESH_MS = 3 * GATEWAY_BEAT_MS;

/**
 * Owns what the control planes of a system tell each other of their requests, so that whoever scales sees all of them.
 *
 *   created -> started -> stopped
 *
 * D1 a control plane that falls silent keeps its last demand for OWNER_TIMEOUT_MS, while this one can hear: unknown is not zero
 */
export class DemandExchange {
  readonly #parts: DemandExchangeParts;
  readonly #others = new Map<GatewayId, Told>();
  #open: (Subscription | Timer)[] = [];
  #soon: Timer | null = null;
  #startedMs = 0;

  constructor(parts: DemandExchangeParts) {
    this.#parts = parts;
  }

  start(): void {
    const { bus, clock } = this.#parts;
    this.#startedMs = clock.monotonic();
    this.#open = [
      bus.subscribe(subjects.gatewayDemands(), GatewayDemand, (demand) => this.#hear(demand)),
      bus.onState(() => this.#excuse()),
      clock.every(GATEWAY_BEAT_MS, () => {
        this.#forget();
        this.tell();
      }),
    ];
    this.tell();
  }

  stop(): void {
    this.#soon?.cancel();
    for (const one of this.#open) "cancel" in one ? one.cancel() : one.unsubscribe();
    this.#open = [];
  }

  /** Somebody began to wait here, or nobody waits any more: the others hear of it within TOGETHER_MS. */
  tellSoon(): void {
    if (this.#open.length === 0) return;
    this.#soon ??= this.#parts.clock.after(TOGETHER_MS, () => this.tell());
  }

  tell(): void {
    const { bus, gatewayId, models, own } = this.#parts;
    this.#soon?.cancel();
    this.#soon = null;
    bus.publish(subjects.gatewayDemand(gatewayId), GatewayDemand, {
      kind: "gateway-demand",
      gatewayId,
      models: models.map((model) => ({ model, ...own(model) })),
    });
  }

  /** Requests of a model that wait at other control planes. */
  waitingElsewhere(model: ModelName): number {
    return this.#told(model).reduce((sum, told) => sum + told.waiting, 0);
  }

  /** What came at each control plane; null: one of them, or the bus, was not heard lately. */
  traffic(model: ModelName): ReadonlyMap<string, Traffic> | null {
    const { bus, clock, gatewayId, own } = this.#parts;
    const freshMs = clock.monotonic() - FRESH_MS;
    const counters = new Map<string, Traffic>([[gatewayId, own(model).traffic]]);
    for (const [other, { heardMs, models }] of this.#others) {
      if (bus.state !== "connected" || heardMs < freshMs) return null;
      const told = models.get(model);
      if (told !== undefined) counters.set(other, told.traffic);
    }
    return counters;
  }

  /** Of all control planes together. Nothing counts as idle for longer than this process has looked. */
  demand(model: ModelName): Demand {
    const { clock, own } = this.#parts;
    const lookedMs = clock.monotonic() - this.#startedMs;
    return sumOf([own(model), ...this.#told(model)], lookedMs);
  }

  /** As they would tell it now. */
  #told(model: ModelName): readonly Demand[] {
    const nowMs = this.#parts.clock.monotonic();
    return [...this.#others.values()].flatMap(({ heardMs, models }) => {
      const told = models.get(model);
      if (told === undefined) return [];
      const sinceMs = nowMs - heardMs;
      const { oldestWaitMs, waiting, idleMs, running } = told;
      return [
        {
          ...told,
          oldestWaitMs: waiting > 0 ? oldestWaitMs + sinceMs : 0,
          idleMs: idleMs === null || running > 0 ? idleMs : idleMs + sinceMs,
        },
      ];
    });
  }

  #hear(demand: GatewayDemand): void {
    const { clock, gatewayId, onWaiting } = this.#parts;
    if (demand.gatewayId === gatewayId) return;
    const models = new Map(demand.models.map((model) => [model.model, model]));
    this.#tellServed(this.#others.get(demand.gatewayId)?.models, models);
    this.#others.set(demand.gatewayId, { heardMs: clock.monotonic(), models });
    if (demand.models.some((model) => model.waiting > 0)) onWaiting();
  }

  /** What a control plane served before it was heard first, or before it had room to tell of the tenant, is not known. */
  #tellServed(before: Told["models"] | undefined, now: Told["models"]): void {
    for (const [model, { served }] of now) {
      const had = new Map(before?.get(model)?.served.map((share) => [share.tenant, share.served]));
      const toldAll = before !== undefined && had.size < MOST_SERVED;
      for (const share of served) {
        const more = share.served - (had.get(share.tenant) ?? (toldAll ? 0 : share.served));
        if (more > 0) this.#parts.onServed(model, { tenant: share.tenant, served: more });
      }
    }
  }

  #forget(): void {
    const { bus, clock } = this.#parts;
    if (bus.state !== "connected") return;
    const silentSinceMs = clock.monotonic() - OWNER_TIMEOUT_MS;
    for (const [gatewayId, { heardMs }] of this.#others) if (heardMs < silentSinceMs) this.#others.delete(gatewayId);
  }

  /** Nobody could be heard while the bus was away. */
  #excuse(): void {
    const heardMs = this.#parts.clock.monotonic();
    for (const [gatewayId, told] of this.#others) this.#others.set(gatewayId, { ...told, heardMs });
  }
}

/** Several demands as one: pure. `mostIdleMs` bounds how long it may be called idle. */
export function sumOf(demands: readonly Demand[], mostIdleMs: number): Demand {
  const waiting = demands.reduce((sum, demand) => sum + demand.waiting, 0);
  const first = demands.reduce((a, b) =>
    b.waiting > 0 && (a.waiting === 0 || b.oldestWaitMs > a.oldestWaitMs) ? b : a,
  );
  return {
    waiting,
    oldestWaitMs: waiting === 0 ? 0 : first.oldestWaitMs,
    waitingTokens: demands.reduce((sum, demand) => sum + demand.waitingTokens, 0),
    missing: waiting === 0 ? null : first.missing,
    running: demands.reduce((sum, demand) => sum + demand.running, 0),
    idleMs: demands.reduce((least, { idleMs }) => Math.min(least, idleMs ?? mostIdleMs), mostIdleMs),
  };
}
