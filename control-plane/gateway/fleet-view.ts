import { MargayError } from "#protocol/errors.ts";
import type { FleetRank, FleetResponse } from "#protocol/fleet-view.ts";
import type { RankStatus, StatusReport } from "#protocol/operator.ts";
import type { ExplainReport } from "#protocol/scaling.ts";
import type { Caller } from "../tenancy/caller.ts";

/** What an operator may look at. */
export interface OperatorView {
  status(): StatusReport;
  explain(): ExplainReport;
}

const MOST_RANKS = 1_000;
const MOST_DECISIONS = 8;

/** Answers `GET /v1/fleet`. The fleet is everybody's: where keys are set it takes one with `admin`. Throws `not_allowed`. */
export function fleetView(operator: OperatorView, caller: Caller): FleetResponse {
  if (!caller.admin) throw new MargayError("not_allowed", "The fleet is shown to keys with admin alone.");
  const { gatewayId, upMs, ranks, models } = operator.status();
  const explained = new Map(operator.explain().models.map((one) => [one.model, one]));
  return {
    object: "fleet",
    gateway: gatewayId,
    up_ms: upMs,
    models: models.map(({ name, waiting, running }) => ({ name, waiting, running, ...whyOf(explained.get(name)) })),
    ranks_total: ranks.length,
    ranks: [...ranks]
      .sort((a, b) => (a.rankId < b.rankId ? -1 : 1))
      .slice(0, MOST_RANKS)
      .map(rankOf),
  };
}

function whyOf(explained: ExplainReport["models"][number] | undefined) {
  return {
    roles: (explained?.outlook ?? []).map(({ leftMs, ...role }) => ({ ...role, left_ms: leftMs })),
    failure: explained?.failure ?? null,
    decisions: (explained?.decisions ?? []).slice(0, MOST_DECISIONS).map(({ agoMs, decision }) => ({
      ago_ms: Math.max(0, agoMs),
      ...{ role: decision.role, from: decision.from, to: decision.to, reason: decision.reason },
    })),
  };
}

function rankOf(rank: RankStatus): FleetRank {
  const { work } = rank;
  return {
    ...{ rank: rank.rankId, worker: rank.workerId, place: rank.rank, places: rank.ranks },
    ...{ role: rank.role, state: rank.state, model: rank.model, epoch: rank.epoch },
    ...{ requests: rank.requests, max_requests: rank.maxRequests, pending_prompt_tokens: rank.pendingPrefillTokens },
    ...{ pages: rank.blocks, kv_bytes: rank.kvBytesMoved, steps: work.steps, busy_ms: work.busyMs },
    ...{ prompt_tokens: work.promptRows, stream_steps: work.streamSteps, generated_tokens: work.tokens },
    silent_ms: Math.max(0, rank.lastBeatMs),
  };
}
