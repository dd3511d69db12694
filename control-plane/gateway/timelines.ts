import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import { MargayError } from "#protocol/errors.ts";
import { type GatewayId, RequestId } from "#protocol/ids.ts";
import { subjects } from "#protocol/subjects.ts";
import { TimelineQuery, TimelineReply, type TimelineResponse } from "#protocol/timeline.ts";
import { GATEWAY_BEAT_MS, GatewayBeat } from "#protocol/worker.ts";
import type { Clock } from "#service/clock.ts";
import type { Way } from "../flow/way.ts";
import { timelineOf } from "./timeline.ts";

export interface TimelinesParts {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly gatewayId: GatewayId;
  /** What became of a request; null: it is not among the latest here. */
  readonly way: (requestId: string) => Way | null;
}

/** A control plane that was not heard for so long is not asked. */
const SILENT_MS = 5 * GATEWAY_BEAT_MS;
const ANSWER_MS = 2_000;
/** Control planes that are asked about one request. */
const MOST_ASKED = 16;

/**
 * Owns what is told of requests. Each control plane remembers the latest ones that it served itself, so one that does not
 * know a request asks the others.
 */
export class Timelines {
  readonly #parts: TimelinesParts;
  readonly #heardMs = new Map<GatewayId, number>();
  #open: Subscription[] = [];

  constructor(parts: TimelinesParts) {
    this.#parts = parts;
  }

  /** Answers the others, and learns who they are. */
  open(): void {
    const { bus, clock, gatewayId } = this.#parts;
    this.#open = [
      bus.subscribe(subjects.gatewayBeats(), GatewayBeat, ({ gatewayId: theirs }) => {
        if (theirs !== gatewayId) this.#heardMs.set(theirs, clock.monotonic());
      }),
      bus.respond(subjects.gatewayTimeline(gatewayId), TimelineQuery, TimelineReply, ({ requestId, tenant }) => ({
        kind: "timeline" as const,
        timeline: this.#own(requestId, tenant),
      })),
    ];
  }

  close(): void {
    for (const one of this.#open) one.unsubscribe();
    this.#open = [];
  }

  /** Rejects with `not_found` for a request that is among nobody's latest, or another tenant's. */
  async find(requestId: string, tenant: string): Promise<TimelineResponse> {
    const found = this.#own(requestId, tenant) ?? (await this.#elsewhere(requestId, tenant));
    if (found !== null) return found;
    throw new MargayError("not_found", "Nobody remembers such a request: each server tells of its latest ones.");
  }

  #own(requestId: string, tenant: string): TimelineResponse | null {
    const way = this.#parts.way(requestId);
    return way === null || way.tenant !== tenant ? null : timelineOf(way);
  }

  /** The first that knows it. Who does not answer in time does not know it. */
  async #elsewhere(id: string, tenant: string): Promise<TimelineResponse | null> {
    const requestId = RequestId.safeParse(id);
    if (!requestId.success) return null;
    const asked = this.#others().map(async (gatewayId) => {
      const query = { kind: "timeline-query", requestId: requestId.data, tenant } as const;
      const subject = subjects.gatewayTimeline(gatewayId);
      const { timeline } = await this.#parts.bus.request(subject, TimelineQuery, query, TimelineReply, ANSWER_MS);
      if (timeline === null) throw new MargayError("not_found");
      return timeline;
    });
    return Promise.any(asked).catch(() => null);
  }

  /** The control planes heard of lately, those heard last first. */
  #others(): readonly GatewayId[] {
    const fromMs = this.#parts.clock.monotonic() - SILENT_MS;
    for (const [gatewayId, heardMs] of this.#heardMs) if (heardMs < fromMs) this.#heardMs.delete(gatewayId);
    return [...this.#heardMs]
      .sort(([, a], [, b]) => b - a)
      .slice(0, MOST_ASKED)
      .map(([gatewayId]) => gatewayId);
  }
}
