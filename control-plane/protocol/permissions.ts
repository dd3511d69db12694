import type { GatewayId, RankId } from "./ids.ts";
import {
  ACCOUNT_JOURNAL,
  BATCH_JOURNAL,
  EPOCH_BUCKET,
  FILE_JOURNAL,
  inboxPrefix,
  LEDGER_JOURNAL,
  PAUSE_JOURNAL,
  RESPONSE_JOURNAL,
  subjects,
  USAGE_JOURNAL,
} from "./subjects.ts";

/** The users of the bus. Everybody in a role has the same rights and shares an inbox prefix. */
export const BUS_ROLES = ["control-plane", "prefill", "decode", "operator"] as const;
export type BusRole = (typeof BUS_ROLES)[number];

/** What a role may do; everything else is denied by the server. */
export interface BusPermissions {
  readonly publish: readonly string[];
  readonly subscribe: readonly string[];
  /** May answer a message it received, on the inbox named there. */
  readonly answers: boolean;
}

const anyRank = "*" as RankId;
const anyGateway = "*" as GatewayId;

const rankPublishes = [subjects.hello(), subjects.beat(anyRank), subjects.kvEvents(anyRank)];
const rankSubscribes = [
  subjects.cancel(anyRank),
  subjects.kvMissed(anyRank),
  subjects.drain(anyRank),
  subjects.group(anyRank),
  subjects.gatewayBeats(),
];

/** Make a journal, bring it to its limits, read it, take subjects away. */
function journalRights(name: string): readonly string[] {
  return ["CREATE", "UPDATE", "INFO", "PURGE"]
    .map((right) => `$JS.API.STREAM.${right}.${name}`)
    .concat(`$JS.API.DIRECT.GET.${name}`);
}

const rules: Readonly<Record<BusRole, BusPermissions>> = {
  "control-plane": {
    publish: [
      subjects.reserve(anyRank),
      subjects.prefill(anyRank),
      subjects.target(anyRank),
      subjects.start(anyRank),
      subjects.cancel(anyRank),
      subjects.resume(anyRank),
      subjects.acks(anyRank),
      subjects.kvMissed(anyRank),
      subjects.drain(anyRank),
      subjects.group(anyRank),
      subjects.gatewayBeat(anyGateway),
      subjects.gatewayDemand(anyGateway),
      subjects.gatewayScaling(anyGateway),
      subjects.gatewayTimeline(anyGateway),
      // The epoch bucket: look it up, make it, put keys.
      "$JS.API.INFO",
      `$JS.API.STREAM.INFO.KV_${EPOCH_BUCKET}`,
      `$JS.API.STREAM.CREATE.KV_${EPOCH_BUCKET}`,
      `$KV.${EPOCH_BUCKET}.>`,
      ...journalRights(RESPONSE_JOURNAL),
      subjects.responseLog("*"),
      subjects.responseMark("*"),
      ...journalRights(FILE_JOURNAL),
      subjects.fileHead("*", "*"),
      subjects.fileBody("*", "*"),
      ...journalRights(BATCH_JOURNAL),
      subjects.batchLog("*", "*"),
      subjects.batchMark("*", "*"),
      ...journalRights(ACCOUNT_JOURNAL),
      subjects.tenantAccount("*"),
      ...journalRights(LEDGER_JOURNAL),
      subjects.ledgerDays(),
      ...journalRights(USAGE_JOURNAL),
      subjects.usageDays(),
      ...journalRights(PAUSE_JOURNAL),
      subjects.learnedPauses(),
    ],
    subscribe: [
      subjects.hello(),
      subjects.beats(),
      subjects.allKvEvents(),
      subjects.tokens(anyGateway),
      subjects.prefillOutcome(anyGateway),
      subjects.gatewayBeats(),
      subjects.gatewayDemands(),
      subjects.allScaling(),
      subjects.gatewayTimeline(anyGateway),
      subjects.responseLogs(),
      subjects.operatorStatus(),
      subjects.operatorDrain(),
      subjects.operatorExplain(),
    ],
    answers: true,
  },
  prefill: {
    publish: [...rankPublishes, subjects.prefillOutcome(anyGateway)],
    subscribe: [...rankSubscribes, subjects.prefill(anyRank), subjects.target(anyRank)],
    answers: true,
  },
  decode: {
    publish: [...rankPublishes, subjects.tokens(anyGateway)],
    subscribe: [
      ...rankSubscribes,
      subjects.reserve(anyRank),
      subjects.start(anyRank),
      subjects.resume(anyRank),
      subjects.acks(anyRank),
    ],
    answers: true,
  },
  operator: {
    publish: [subjects.operatorStatus(), subjects.operatorDrain(), subjects.operatorExplain()],
    subscribe: [],
    answers: false,
  },
};

/** The rights of one role, its inbox included. */
export function permissionsOf(role: BusRole): BusPermissions {
  const { publish, subscribe, answers } = rules[role];
  return { publish, subscribe: [...subscribe, `${inboxPrefix(role)}.>`], answers };
}
