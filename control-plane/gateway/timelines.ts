import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import { MargayError } from "#protocol/errors.ts";
import { type GatewayId, RequestId } from "#protocol/ids.ts";
import { subjects } from "#protocol/subjects.ts";
import { TimelineQuery, TimelineReply, type TimelineResponse } from "#protocol/timeline.ts";
import type { Way } from "../flow/way.ts";
import type { GatewayWatch } from "./gateway-watch.ts";
import { timelineOf } from "./timeline.ts";

export interface TimelinesParts {
  readonly bus: Bus;
  readonly gateways: GatewayWatch;
  readonly gatewayId: GatewayId;
  /** What became of a request; null: it is not among the latest here. */
  readonly way: (requestId: string) => Way | null;
}

const ANSWER_MS = 2_000;
/** Control planes that are asked about one request. */
const MOST_ASKED = 16;

/**
 * Owns what is told of requests. Each control plane remembers the latest ones that it served itself, so one that does not
 * know a request asks the others.
 */
export class Timelines {
  readonly #parts: TimelinesParts;
  #open: Subscription | null = null;

  constructor(parts: TimelinesParts) {
    this.#parts = parts;
  }

  /** Answers the others. */
  open(): void {
    const { bus, gatewayId } = this.#parts;
    const subject = subjects.gatewayTimeline(gatewayId);
    this.#open = bus.respond(subject, TimelineQuery, TimelineReply, ({ requestId, tenant }) => ({
      kind: "timeline" as const,
      timeline: this.#own(requestId, tenant),
    }));
  }

  close(): void {
    this.#open?.unsubscribe();
    this.#open = null;
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
    const { bus, gateways } = this.#parts;
    const asked = gateways.others.slice(0, MOST_ASKED).map(async (gatewayId) => {
      const query = { kind: "timeline-query", requestId: requestId.data, tenant } as const;
      const subject = subjects.gatewayTimeline(gatewayId);
      const { timeline } = await bus.request(subject, TimelineQuery, query, TimelineReply, ANSWER_MS);
      if (timeline === null) throw new MargayError("not_found");
      return timeline;
    });
    return Promise.any(asked).catch(() => null);
  }
}
