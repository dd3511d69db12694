import {
  asGroupEngine,
  type Engine,
  type EngineEvent,
  type EngineInfo,
  type EngineListener,
  type EngineOptions,
  type StepResult,
} from "#native";
import {
  ReserveKv,
  ReserveReply,
  ResumeReply,
  ResumeStream,
  StartDecode,
  StartReply,
  TokenAcks,
  TokenBatch,
} from "#protocol/decode.ts";
import type { KvEndpoint } from "#protocol/kv.ts";
import { Cancel, CancelReply } from "#protocol/prefill.ts";
import { subjects } from "#protocol/subjects.ts";
import { Grammars } from "#service/grammar/grammars.ts";
import { WorkerNode, type WorkerNodeParts } from "#service/worker-node.ts";
import { ConstraintDesk } from "./constraint-desk.ts";
import { DecodeRequests } from "./decode-requests.ts";
import { DecodeSpans } from "./decode-spans.ts";
import { TokenStream } from "./token-stream.ts";

export interface DecodeNodeParts extends WorkerNodeParts {
  readonly openEngine: (options: EngineOptions, listener: EngineListener) => Promise<Engine>;
}

/** Longest wait for what a text with a constraint may go on with; its grammar was compiled before, and in less. */
const MASK_MS = 5_000;

export type DecodeNode = WorkerNode<Engine, StepResult, EngineEvent>;

/** One decode rank. */
export function createDecodeNode(parts: DecodeNodeParts): DecodeNode {
  const { config, bus, clock, logger, openEngine } = parts;
  const endpointOf = ({ kvPort: port, hostKey }: EngineInfo): KvEndpoint => ({
    ...(config.kvAdvertise ?? { host: config.engine.kvHost, port }),
    hostKey,
  });
  return new WorkerNode(parts, {
    role: "decode",
    open(rankId, listener) {
      // Whoever decodes has a row of every step.
      const slots = Math.min(config.engine.slots, config.engine.maxStepTokens);
      return openEngine({ ...config.engine, slots, role: "decode", rankId }, listener);
    },
    group: (engine) => (config.ranks === 1 ? null : asGroupEngine(engine)),
    endpoint: (engine) => endpointOf(engine.info),
    serve(engine, { rankId, epoch, watch, isJoined, tracer }) {
      const spans = new DecodeSpans(parts.tracing ?? null, clock, rankId);
      const stream = new TokenStream(rankId, epoch, clock, (owner, batch) => {
        tracer.time("send tokens", () => bus.publish(subjects.tokens(owner), TokenBatch, batch));
        spans.sent(batch);
      });
      const { vocabSize } = engine.info;
      const grammars = new Grammars({
        clock,
        logger,
        folder: config.engine.modelFolder,
        vocabSize,
        vetMs: MASK_MS,
        maskMs: MASK_MS,
      });
      const requests = new DecodeRequests({
        ...parts,
        engine,
        rankId,
        epoch,
        isJoined,
        endpoint: endpointOf(engine.info),
        stream,
        constraints: new ConstraintDesk(grammars, vocabSize),
      });
      const subscriptions = [
        bus.respond(subjects.reserve(rankId), ReserveKv, ReserveReply, (message) => {
          watch(message.head.owner);
          return requests.reserve(message);
        }),
        bus.respond(subjects.start(rankId), StartDecode, StartReply, (message) =>
          spans.started(message, requests.start(message)),
        ),
        bus.respond(subjects.resume(rankId), ResumeStream, ResumeReply, (message) => stream.resume(message)),
        bus.respond(subjects.cancel(rankId), Cancel, CancelReply, ({ head }) => {
          spans.forget(head);
          return requests.cancel(head);
        }),
        bus.subscribe(subjects.acks(rankId), TokenAcks, (acks) => stream.acknowledge(acks)),
      ];
      return { requests, subscriptions };
    },
  });
}
