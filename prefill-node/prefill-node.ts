import {
  asGroupEngine,
  type Engine,
  type EngineEvent,
  type EngineListener,
  type EngineOptions,
  type StepResult,
} from "#native";
import {
  Cancel,
  CancelReply,
  PrefillDone,
  PrefillFailed,
  PrefillReply,
  PrefillTarget,
  PrefillWork,
  TargetReply,
} from "#protocol/prefill.ts";
import { subjects } from "#protocol/subjects.ts";
import { WorkerNode, type WorkerNodeParts } from "#service/worker-node.ts";
import { PrefillRequests } from "./prefill-requests.ts";
import { PrefillSpans } from "./prefill-spans.ts";

export interface PrefillNodeParts extends WorkerNodeParts {
  readonly openEngine: (options: EngineOptions, listener: EngineListener) => Promise<Engine>;
}

export type PrefillNode = WorkerNode<Engine, StepResult, EngineEvent>;

/** One prefill rank. */
export function createPrefillNode(parts: PrefillNodeParts): PrefillNode {
  const { config, bus, openEngine } = parts;
  return new WorkerNode(parts, {
    role: "prefill",
    open: (rankId, listener) => openEngine({ ...config.engine, role: "prefill", rankId }, listener),
    group: (engine) => (config.ranks === 1 ? null : asGroupEngine(engine)),
    endpoint: () => null,
    serve(engine, { rankId, epoch, watch, isJoined, tracer }) {
      const spans = new PrefillSpans(parts.tracing ?? null, parts.clock);
      const requests = new PrefillRequests({
        ...parts,
        onChunk: (head, rows, computeMs) => spans.chunk(head, rows, computeMs),
        engine,
        rankId,
        epoch,
        isJoined,
        tell(owner, outcome) {
          spans.told(outcome);
          const schema = outcome.kind === "prefill-done" ? PrefillDone : PrefillFailed;
          tracer.time("send first token", () => bus.publish(subjects.prefillOutcome(owner), schema, outcome));
        },
      });
      const subscriptions = [
        bus.respond(subjects.prefill(rankId), PrefillWork, PrefillReply, (work) => {
          watch(work.head.owner);
          return requests.accept(work);
        }),
        bus.respond(subjects.target(rankId), PrefillTarget, TargetReply, (target) => requests.direct(target)),
        bus.respond(subjects.cancel(rankId), Cancel, CancelReply, ({ head }) => requests.cancel(head)),
      ];
      return { requests, subscriptions };
    },
  });
}
