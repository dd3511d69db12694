import type { ModelName, RankId, WorkerId } from "#protocol/ids.ts";
import { BLOCK_STATES, type BlockCounts } from "#protocol/lifecycle.ts";
import type { ModelCard } from "#protocol/model-card.ts";
import type { Heartbeat, Load, Role } from "#protocol/worker.ts";
import { NO_RANK_WORK } from "#protocol/worker.ts";
import { EMPTY_FLEET, type FleetSnapshot, type Rank, withHeartbeat } from "../../control-plane/fleet/fleet.ts";

export const NANO = "nano" as ModelName;

export function cardOf(changes: Partial<ModelCard> = {}): ModelCard {
  return {
    name: NANO,
    modelHash: "hash-1",
    layout: "bf16-4x64",
    numerics: "plain",
    vocabSize: 100_000,
    contextLength: 4096,
    attentions: 4,
    pageBytes: 9216,
    ...changes,
  };
}

/** A pool with nothing in it. */
export function freeBlocks(total: number): BlockCounts {
  return Object.fromEntries(BLOCK_STATES.map((state) => [state, state === "free" ? total : 0])) as BlockCounts;
}

export function loadOf(changes: Partial<Load> = {}): Load {
  return {
    requests: 0,
    maxRequests: 8,
    pendingPrefillTokens: 0,
    prefillTokensPerSecond: 1000,
    blocksTotal: 64,
    blocksAvailable: 64,
    blocks: freeBlocks(64),
    kvBytesMoved: 0,
    work: NO_RANK_WORK,
    ...changes,
  };
}

export const rankId = (name: string) => `${name}-r0` as RankId;

/** The heartbeat of rank 0 of worker `name`; p... computes prompts, d... decodes. */
export function beatOf(name: string, changes: Partial<Heartbeat> = {}): Heartbeat {
  const role: Role = name.startsWith("p") ? "prefill" : "decode";
  return {
    kind: "heartbeat",
    workerId: name as WorkerId,
    rankId: rankId(name),
    rank: 0,
    ranks: 1,
    role,
    state: "ready",
    epoch: 1,
    clockMs: 0,
    seq: 0,
    model: cardOf(),
    kvEndpoint: role === "decode" ? { host: "127.0.0.1", port: 7000, hostKey: "host" } : null,
    exchange: null,
    experts: 0,
    membership: null,
    lostGroup: null,
    kvSeq: -1,
    healthUrl: "http://127.0.0.1:1",
    pid: 1,
    load: loadOf(),
    ...changes,
  };
}

/** A fleet that heard these heartbeats at time 0; what a beat cannot say is changed by `ranks`. */
export function fleetOf(
  beats: readonly Heartbeat[],
  ranks: Readonly<Record<string, Partial<Rank>>> = {},
): FleetSnapshot {
  let fleet = EMPTY_FLEET;
  for (const beat of beats) fleet = withHeartbeat(fleet, beat, 0, 0);
  const changed = new Map(fleet.ranks);
  for (const [name, changes] of Object.entries(ranks)) {
    changed.set(rankId(name), { ...changed.get(rankId(name))!, ...changes });
  }
  return { ...fleet, ranks: changed };
}
