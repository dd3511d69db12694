import type { GatewayId, RankId } from "./ids.ts";

/**
 * Every subject of the bus, as functions. Nobody else spells one.
 *
 * Request/reply (answered within a second or so unless the message says otherwise):
 *   margay.fleet.hello                Hello -> Welcome | Refused          (queue group of control planes)
 *   margay.rank.RANK.reserve          ReserveKv -> ReserveReply
 *   margay.rank.RANK.prefill          PrefillWork -> PrefillReply
 *   margay.rank.RANK.target           PrefillTarget -> TargetReply
 *   margay.rank.RANK.start            StartDecode -> StartReply
 *   margay.rank.RANK.cancel           Cancel -> CancelReply
 *   margay.rank.RANK.resume           ResumeStream -> ResumeReply
 *   margay.rank.RANK.kv-missed        KvMissed -> KvMissedReply
 *   margay.rank.RANK.drain            Drain -> DrainReply
 *   margay.rank.RANK.group            GroupOrder -> GroupReply
 *   margay.operator.status            StatusQuery -> StatusReport
 *   margay.operator.drain             DrainWorker -> Done | Refused
 *   margay.operator.explain           ExplainQuery -> ExplainReport
 *   margay.gateway.GATEWAY.timeline   TimelineQuery -> TimelineReply
 * Published:
 *   margay.fleet.beat.RANK            Heartbeat | Goodbye
 *   margay.fleet.kv.RANK              KvEvents
 *   margay.rank.RANK.acks             TokenAcks
 *   margay.gateway.GATEWAY.tokens     TokenBatch
 *   margay.gateway.GATEWAY.prefill    PrefillDone | PrefillFailed
 *   margay.gateway.GATEWAY.beat       GatewayBeat
 *   margay.gateway.GATEWAY.demand     GatewayDemand
 *   margay.gateway.GATEWAY.scaling    ScalingPlan | ScalingDecision
 * Kept in a journal of the control planes:
 *   margay.response.RESPONSE.log      ResponseEntry
 *   margay.response.RESPONSE.running  ResponseEntry                       (one, while somebody has to make the response)
 *   margay.file.TENANT.FILE.head      FileHead                            (one)
 *   margay.file.TENANT.FILE.body      FilePart
 *   margay.batch.TENANT.BATCH.log     BatchEntry
 *   margay.batch.TENANT.BATCH.open    BatchEntry                          (one, while somebody has to work on it)
 *   margay.tenant.TENANT.account      TenantAccount                       (the last one)
 *   margay.ledger.YEAR.MONTH.DAY      LedgerEntry
 *   margay.pauses                     LearnedPauses                       (the last one)
 *   margay.usage.YEAR.MONTH.DAY       UsageDay                            (the last one)
 */
export const subjects = {
  hello: () => "margay.fleet.hello",
  beat: (rank: RankId) => `margay.fleet.beat.${rank}`,
  beats: () => "margay.fleet.beat.*",
  kvEvents: (rank: RankId) => `margay.fleet.kv.${rank}`,
  allKvEvents: () => "margay.fleet.kv.*",
  reserve: (rank: RankId) => `margay.rank.${rank}.reserve`,
  prefill: (rank: RankId) => `margay.rank.${rank}.prefill`,
  target: (rank: RankId) => `margay.rank.${rank}.target`,
  start: (rank: RankId) => `margay.rank.${rank}.start`,
  cancel: (rank: RankId) => `margay.rank.${rank}.cancel`,
  resume: (rank: RankId) => `margay.rank.${rank}.resume`,
  acks: (rank: RankId) => `margay.rank.${rank}.acks`,
  kvMissed: (rank: RankId) => `margay.rank.${rank}.kv-missed`,
  drain: (rank: RankId) => `margay.rank.${rank}.drain`,
  group: (rank: RankId) => `margay.rank.${rank}.group`,
  tokens: (gateway: GatewayId) => `margay.gateway.${gateway}.tokens`,
  prefillOutcome: (gateway: GatewayId) => `margay.gateway.${gateway}.prefill`,
  gatewayBeat: (gateway: GatewayId) => `margay.gateway.${gateway}.beat`,
  gatewayBeats: () => "margay.gateway.*.beat",
  gatewayDemand: (gateway: GatewayId) => `margay.gateway.${gateway}.demand`,
  gatewayDemands: () => "margay.gateway.*.demand",
  responseAll: () => "margay.response.>",
  gatewayScaling: (gateway: GatewayId) => `margay.gateway.${gateway}.scaling`,
  allScaling: () => "margay.gateway.*.scaling",
  gatewayTimeline: (gateway: GatewayId) => `margay.gateway.${gateway}.timeline`,
  responseLog: (response: string) => `margay.response.${response}.log`,
  responseLogs: () => "margay.response.*.log",
  responseMark: (response: string) => `margay.response.${response}.running`,
  responseMarks: () => "margay.response.*.running",
  filesAll: () => "margay.file.>",
  fileHead: (tenant: string, file: string) => `margay.file.${tenant}.${file}.head`,
  fileHeads: (tenant: string) => `margay.file.${tenant}.*.head`,
  fileBody: (tenant: string, file: string) => `margay.file.${tenant}.${file}.body`,
  batchesAll: () => "margay.batch.>",
  batchLog: (tenant: string, batch: string) => `margay.batch.${tenant}.${batch}.log`,
  batchLogs: (tenant: string) => `margay.batch.${tenant}.*.log`,
  batchMark: (tenant: string, batch: string) => `margay.batch.${tenant}.${batch}.open`,
  batchMarks: () => "margay.batch.*.*.open",
  tenantAccount: (tenant: string) => `margay.tenant.${tenant}.account`,
  tenantAccounts: () => "margay.tenant.*.account",
  /** `day`: 2026.11.24. */
  ledgerDay: (day: string) => `margay.ledger.${day}`,
  ledgerDays: () => "margay.ledger.*.*.*",
  usageDay: (day: string) => `margay.usage.${day}`,
  usageDays: () => "margay.usage.*.*.*",
  learnedPauses: () => "margay.pauses",
  operatorStatus: () => "margay.operator.status",
  operatorDrain: () => "margay.operator.drain",
  operatorExplain: () => "margay.operator.explain",
} as const;

/** Queue group in which control planes share request/reply subjects. */
export const CONTROL_PLANE_QUEUE = "control-plane";
/** JetStream key-value bucket whose revisions are epochs. */
export const EPOCH_BUCKET = "margay-epochs";
/** Journal of the stored responses. */
export const RESPONSE_JOURNAL = "margay-responses";
/** Journal of the tenants' files, and that of what became of their batches. */
export const FILE_JOURNAL = "margay-files";
export const BATCH_JOURNAL = "margay-batches";
/** Journal of the tenants' accounts. */
export const ACCOUNT_JOURNAL = "margay-limits";
/** Journal of what requests used up, and that of its sums by day. */
export const LEDGER_JOURNAL = "margay-ledger";
export const USAGE_JOURNAL = "margay-usage";
/** Journal of what was learned of pauses between requests. */
export const PAUSE_JOURNAL = "margay-pauses";
/** Prefix of the subjects on which a user of this role takes replies; the others of the role share it. */
export function inboxPrefix(role: string): string {
  return `_INBOX.${role}`;
}

/** A subject without the names in it, for labels of metrics: "rank.reserve", "gateway.tokens", "fleet.beat". */
export function subjectKind(subject: string): string {
  const [root, family, second, third] = subject.split(".");
  if (root !== "margay" || family === undefined) return "other";
  return `${family}.${["rank", "gateway", "response", "tenant"].includes(family) ? third : second}`;
}
