import { z } from "zod";
import { GatewayId, ModelName } from "./ids.ts";
import { Role } from "./worker.ts";

/**
 * How far the workers of a role are that are on their way, by the last of them:
 * scheduling (no place to run yet) -> loading (its process runs) -> joining (heard of, not ready yet); ready: none is.
 */
export const StartPhase = z.enum(["scheduling", "loading", "joining", "ready"]);
export type StartPhase = z.infer<typeof StartPhase>;

/**
 * What the start of a rank is made of, in order: a place to run is found (as the control plane sees it), the process comes up,
 * kernels are chosen and timed, weights packed or mapped, the KV pool made and touched, the rank registered and ready.
 */
export const START_STEPS = ["schedule", "process", "kernels", "weights", "pool", "registered"] as const;
export type StartStep = (typeof START_STEPS)[number];

/** What a request of a model may expect of the workers of one role. */
export const RoleOutlook = z.object({
  role: Role,
  /** Workers asked for, those of them that have a process, and those that take requests. */
  wanted: z.int().min(0),
  started: z.int().min(0),
  ready: z.int().min(0),
  phase: StartPhase,
  /** Of a usual start, how much has passed and what is left, for the next worker; null: no start was seen yet. */
  share: z.number().min(0).max(1).nullable(),
  leftMs: z.number().min(0).nullable(),
});
export type RoleOutlook = z.infer<typeof RoleOutlook>;

/** How many pauses between requests had which length, by bins of `keep-alive.ts`, as a leader hands them to the next. */
export const LearnedPauses = z.object({
  kind: z.literal("learned-pauses"),
  models: z
    .array(
      z.object({
        model: ModelName,
        counts: z.array(z.int().min(0)).max(1_000),
        beyond: z.int().min(0),
      }),
    )
    .max(10_000),
});

/** A change of the number of workers that are wanted, and why, in words. */
export const ScalingDecision = z.object({
  kind: z.literal("scaling-decision"),
  gatewayId: GatewayId,
  model: ModelName,
  role: Role,
  from: z.int().min(0),
  to: z.int().min(0),
  reason: z.string().max(500),
});
export type ScalingDecision = z.infer<typeof ScalingDecision>;

const known = z.number().nullable();

/** What the plan of a model was last made of; null: not known. */
export const PlannedFrom = z.object({
  arrivalsPerSecond: known,
  arrivalsPerSecondLong: known,
  prefillSeconds: known,
  queuedSeconds: z.number(),
  oldestWaitMs: z.number(),
  late: known,
  streams: z.number(),
  streamSeconds: known,
  streamsPerGroup: known,
  coldStartMs: z.number(),
});

/** The plan of one model as it stands: told by whoever scales, heard by every control plane. */
export const ScalingPlan = z.object({
  kind: z.literal("scaling-plan"),
  gatewayId: GatewayId,
  model: ModelName,
  /** Groups that the plan asks for, and why. */
  prefill: z.object({ groups: z.int().min(0), reason: z.string().max(500) }),
  decode: z.object({ groups: z.int().min(0), reason: z.string().max(500) }),
  from: PlannedFrom,
  /** How long workers stay without a request, and why. */
  keepAlive: z.string().max(500),
});
export type ScalingPlan = z.infer<typeof ScalingPlan>;

/** `margay explain` asks, any control plane answers. */
export const ExplainQuery = z.object({ kind: z.literal("explain-query") });

export const ExplainReport = z.object({
  kind: z.literal("explain-report"),
  models: z.array(
    z.object({
      model: ModelName,
      outlook: z.array(RoleOutlook),
      /** null: nobody told of a plan yet. */
      plan: z.object({ agoMs: z.number(), plan: ScalingPlan }).nullable(),
      /** The latest first. */
      decisions: z.array(z.object({ agoMs: z.number(), decision: ScalingDecision })),
      /** Why workers do not come; null: nothing keeps them. */
      failure: z.string().nullable(),
    }),
  ),
});
export type ExplainReport = z.infer<typeof ExplainReport>;
