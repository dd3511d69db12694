import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import type { GatewayId, ModelName } from "#protocol/ids.ts";
import { DrainWorker, DrainWorkerReply, StatusQuery, StatusReport } from "#protocol/operator.ts";
import { DrainReply } from "#protocol/prefill.ts";
import { ExplainQuery, ExplainReport } from "#protocol/scaling.ts";
import { CONTROL_PLANE_QUEUE, subjects } from "#protocol/subjects.ts";
import { Drain } from "#protocol/worker.ts";
import type { Clock } from "#service/clock.ts";
import type { FleetWatch } from "./fleet/fleet-watch.ts";
import type { DecisionLog } from "./scaling/decision-log.ts";
import type { DemandExchange } from "./scaling/demand-exchange.ts";
import type { ScaleTarget } from "./scaling/scale-target.ts";
import type { Scaler } from "./scaling/scaler.ts";
import type { StartWatch } from "./scaling/start-watch.ts";

const ANSWER_MS = 2_000;

export interface OperatorDeskParts {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly gatewayId: GatewayId;
  readonly models: readonly ModelName[];
  readonly fleet: FleetWatch;
  readonly demand: DemandExchange;
  readonly scaler: Scaler;
  readonly target: ScaleTarget;
  readonly starts: StartWatch;
  readonly decisions: DecisionLog;
}

/** Answers the operator: what there is, why, and drains of workers. */
export class OperatorDesk {
  readonly #parts: OperatorDeskParts;
  readonly #madeMs: number;

  constructor(parts: OperatorDeskParts) {
    this.#parts = parts;
    this.#madeMs = parts.clock.monotonic();
  }

  status(): StatusReport {
    return report(this.#parts, this.#madeMs);
  }

  explain(): ExplainReport {
    return explanation(this.#parts);
  }

  /** Answers those who ask over the bus. Returns the open subscriptions. */
  open(): readonly Subscription[] {
    const { bus } = this.#parts;
    const drain = (message: DrainWorker) => drainWorker(this.#parts, message);
    return [
      bus.respond(subjects.operatorStatus(), StatusQuery, StatusReport, () => this.status(), CONTROL_PLANE_QUEUE),
      bus.respond(subjects.operatorExplain(), ExplainQuery, ExplainReport, () => this.explain(), CONTROL_PLANE_QUEUE),
      bus.respond(subjects.operatorDrain(), DrainWorker, DrainWorkerReply, drain, CONTROL_PLANE_QUEUE),
    ];
  }
}

function report(parts: OperatorDeskParts, startedMs: number): StatusReport {
  const { clock, demand, fleet, gatewayId, models, scaler } = parts;
  const nowMs = clock.monotonic();
  return {
    kind: "status-report",
    gatewayId,
    upMs: nowMs - startedMs,
    ranks: [...fleet.snapshot.ranks.values()].map((rank) => ({
      workerId: rank.workerId,
      rankId: rank.rankId,
      rank: rank.rank,
      ranks: rank.ranks,
      group:
        rank.membership === null
          ? null
          : {
              epoch: rank.membership.epoch,
              size: rank.membership.members.length,
              mapVersion: rank.membership.mapVersion,
            },
      role: rank.role,
      state: rank.state,
      model: rank.model.name,
      epoch: rank.epoch,
      pid: rank.pid,
      healthUrl: rank.healthUrl,
      requests: rank.load.requests,
      maxRequests: rank.load.maxRequests,
      blocksTotal: rank.load.blocksTotal,
      blocksAvailable: rank.load.blocksAvailable,
      blocks: rank.load.blocks,
      kvBytesMoved: rank.load.kvBytesMoved,
      pendingPrefillTokens: rank.load.pendingPrefillTokens,
      work: rank.load.work,
      lastBeatMs: nowMs - rank.lastBeatMs,
    })),
    models: models.map((name) => {
      const wanted = scaler.wanted(name);
      const { waiting, running } = demand.demand(name);
      return {
        name,
        waiting,
        running: running - waiting,
        wantedPrefill: wanted?.prefill ?? 0,
        wantedDecode: wanted?.decode ?? 0,
      };
    }),
  };
}

function explanation({ models, starts, decisions, target }: OperatorDeskParts): ExplainReport {
  return {
    kind: "explain-report",
    models: models.map((model) => ({
      model,
      outlook: [...starts.outlook(model)],
      failure: target.lastFailure(model)?.sentence ?? null,
      ...decisions.explain(model),
    })),
  };
}

/** Passes the wish to every rank of the worker; one of our own is replaced while it still finishes its requests. */
async function drainWorker(parts: OperatorDeskParts, message: DrainWorker): Promise<DrainWorkerReply> {
  const ranks = [...parts.fleet.snapshot.ranks.values()].filter((rank) => rank.workerId === message.workerId);
  if (ranks.length === 0) {
    const detail = `there is no worker ${message.workerId}; margay status lists them`;
    return { kind: "refused", code: "not_found", detail, retryAfterMs: null };
  }
  const drain = { kind: "drain", deadlineMs: parts.clock.now() + message.graceMs } as const;
  for (const rank of ranks) {
    const reply = await parts.bus.request(subjects.drain(rank.rankId), Drain, drain, DrainReply, ANSWER_MS);
    if (reply.kind === "refused") return reply;
  }
  void parts.target.stop(message.workerId, message.graceMs);
  return { kind: "done" };
}
