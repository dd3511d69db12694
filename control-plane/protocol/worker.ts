import { z } from "zod";
import { ErrorCode } from "./errors.ts";
import { GatewayId, RankId, WorkerId } from "./ids.ts";
import { KvEndpoint } from "./kv.ts";
import type { BlockState } from "./lifecycle.ts";
import { ExchangeEndpoint, LostGroup, Membership } from "./membership.ts";
import { ModelCard } from "./model-card.ts";

export const Role = z.enum(["prefill", "decode"]);
export type Role = z.infer<typeof Role>;

/**
 * loading -> (forming <->) ready -> draining -> (gone). Only a ready rank is given work. One of several ranks is `forming`
 * while it is in no group; a worker of one rank never is.
 */
export const WorkerState = z.enum(["loading", "forming", "ready", "draining"]);
export type WorkerState = z.infer<typeof WorkerState>;

/** First message of a rank; answered by a `Welcome` with its epoch, or a `Refused`. */
export const Hello = z.object({
  kind: z.literal("hello"),
  workerId: WorkerId,
  rankId: RankId,
  /** Number of this rank among those of its worker, and how many those are. */
  rank: z.int().min(0),
  ranks: z.int().min(1),
  role: Role,
  model: ModelCard,
  /** Real experts of the model; 0: none. */
  experts: z.int().min(0),
  /** Sender's clock, epoch milliseconds: a rank more than MAX_CLOCK_SKEW_MS off is refused. */
  clockMs: z.number(),
});
export type Hello = z.infer<typeof Hello>;

export const MAX_CLOCK_SKEW_MS = 2_000;

/** `epoch` rises with every start of the same rank; messages of an earlier epoch are refused. */
export const Welcome = z.object({ kind: z.literal("welcome"), epoch: z.int().min(1), gatewayId: GatewayId });
export type Welcome = z.infer<typeof Welcome>;

/** What a rank has computed since it began: differences tell how fast it is, however many heartbeats are lost. */
export const Work = z.object({
  steps: z.int().min(0),
  busyMs: z.number().min(0),
  /** Prompt tokens computed. */
  promptRows: z.int().min(0),
  /** Sequences that decoded, summed over steps, and the tokens they gained. */
  streamSteps: z.int().min(0),
  tokens: z.int().min(0),
});
export type Work = z.infer<typeof Work>;

export const NO_RANK_WORK: Work = { steps: 0, busyMs: 0, promptRows: 0, streamSteps: 0, tokens: 0 };

const count = z.int().min(0).default(0);
/** Blocks of a pool by state; a version that knows one state less has none in it. */
export const BlocksByState = z.object({
  free: count,
  reserved: count,
  filling: count,
  receiving: count,
  sealed: count,
  sending: count,
  attached: count,
  cached: count,
} satisfies Record<BlockState, z.ZodType>);

/** Load of a rank at the time of a heartbeat. */
export const Load = z.object({
  /** Requests admitted and not ended. */
  requests: z.int().min(0),
  /** Most requests the rank admits. */
  maxRequests: z.int().min(1),
  /** Prompt tokens admitted and not yet computed. */
  pendingPrefillTokens: z.int().min(0),
  /** Measured prompt tokens per second, 0 while unknown. */
  prefillTokensPerSecond: z.number().min(0),
  blocksTotal: z.int().min(0),
  /** Blocks that an admission could take now: free or cached and unpinned. */
  blocksAvailable: z.int().min(0),
  /** By state; they add up to the pool. Zeros from a version that does not tell. */
  blocks: BlocksByState.prefault({}),
  /** KV bytes sent (prefill) or received (decode) since the rank began. */
  kvBytesMoved: count,
  work: Work,
});
export type Load = z.infer<typeof Load>;

/** Sent every HEARTBEAT_MS and on each change of state. Carries all there is to know, so it needs no history. */
export const Heartbeat = z.object({
  kind: z.literal("heartbeat"),
  workerId: WorkerId,
  rankId: RankId,
  rank: z.int().min(0),
  ranks: z.int().min(1),
  role: Role,
  state: WorkerState,
  epoch: z.int().min(1),
  /** Sender's clock, epoch milliseconds. */
  clockMs: z.number(),
  /** Number of this heartbeat within the epoch. */
  seq: z.int().min(0),
  model: ModelCard,
  /** Only decode ranks receive KV. */
  kvEndpoint: KvEndpoint.nullable(),
  /** Where it takes rows for its experts; null: it is its worker's only rank. */
  exchange: ExchangeEndpoint.nullable(),
  experts: z.int().min(0),
  /** The group it is in, or how the last one ended. */
  membership: Membership.nullable(),
  lostGroup: LostGroup.nullable(),
  /** Last KV event sent, -1 for none. */
  kvSeq: z.int().min(-1),
  /** Address of the health server, for people and scrapers. */
  healthUrl: z.string(),
  pid: z.int().min(1),
  load: Load,
});
export type Heartbeat = z.infer<typeof Heartbeat>;

export const HEARTBEAT_MS = 500;
/** A rank silent for this long is lost: its requests are placed elsewhere. */
export const HEARTBEAT_TIMEOUT_MS = 2_500;

/** Last message of a rank that leaves by its own will. */
export const Goodbye = z.object({
  kind: z.literal("goodbye"),
  rankId: RankId,
  epoch: z.int().min(1),
});
export type Goodbye = z.infer<typeof Goodbye>;

/** Heartbeat of a control-plane process: a rank ends requests whose owner is silent for OWNER_TIMEOUT_MS. */
export const GatewayBeat = z.object({
  kind: z.literal("gateway-beat"),
  gatewayId: GatewayId,
  clockMs: z.number(),
});
export type GatewayBeat = z.infer<typeof GatewayBeat>;

export const GATEWAY_BEAT_MS = 1_000;
export const OWNER_TIMEOUT_MS = 15_000;

/** Asks a rank to finish or hand back its work by `deadlineMs` and to exit. */
export const Drain = z.object({ kind: z.literal("drain"), deadlineMs: z.number() });
export type Drain = z.infer<typeof Drain>;

/** A polite no to any request/reply message. */
export const Refused = z.object({
  kind: z.literal("refused"),
  code: ErrorCode,
  /** For logs; never prompt text. */
  detail: z.string().max(500),
  retryAfterMs: z.number().min(0).nullable(),
});
export type Refused = z.infer<typeof Refused>;

/** A plain yes. */
export const Done = z.object({ kind: z.literal("done") });
export type Done = z.infer<typeof Done>;
