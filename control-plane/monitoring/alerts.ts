import { BURNS, GOALS, missedSeries } from "./goals.ts";
import { increase, over, rate } from "./promql.ts";

export interface Alert {
  readonly alert: string;
  readonly expr: string;
  /** How long it has to be so. */
  readonly after: string;
  readonly severity: "warning" | "critical";
  readonly summary: string;
  /** What it means, where to look, what to do: a paragraph of Markdown. */
  readonly runbook: string;
}

const BUDGETS: readonly Alert[] = GOALS.flatMap((goal) =>
  BURNS.map(({ name, severity, long, short, factor, after }) => {
    const limit = Number((factor * goal.budget).toFixed(4));
    return {
      alert: `Margay${goal.name}Burn${name}`,
      expr: `${missedSeries(goal, long)} > ${limit} and ${missedSeries(goal, short)} > ${limit}`,
      after,
      severity,
      summary: `Requests for {{ $labels.model }} miss a goal ${factor} times as often as they may: ${goal.sentence}.`,
      runbook: goal.runbook,
    };
  }),
);

const STATES: readonly Alert[] = [
  {
    alert: "MargayRequestsWait",
    expr: `${over("sum", "margay_waiting_requests", ["model"])} > 0 unless on (model) ${rate("margay_generated_tokens_total", ["model"], {}, "5m")} > 0`,
    after: "5m",
    severity: "critical",
    summary: "Requests for {{ $labels.model }} wait, and none is answered.",
    runbook:
      "No worker serves. `margay status` says how many are wanted and what each does. On a cluster read the condition `CapacityAvailable` of the pools' Deployments (it has the scheduler's reason), elsewhere the last sentence of the worker that ended, in the control plane's log.",
  },
  {
    alert: "MargayNoLeader",
    expr: `${over("sum", "margay_leader", ["namespace"])} != 1`,
    after: "5m",
    severity: "critical",
    summary: "Not exactly one control plane decides how many workers there are.",
    runbook:
      "With none, the number of workers stays as it is: read the control planes' logs for the Lease, and whether they reach the API server. With two for so long, one of them cannot see the other's lease: look for two releases with one name.",
  },
  {
    alert: "MargayApiServerAway",
    expr: `${over("max", "margay_api_server_away_seconds", ["namespace"])} > 120`,
    after: "1m",
    severity: "warning",
    summary: "The control plane has not reached the API server for two minutes: it holds the number of workers.",
    runbook:
      "Requests are served as before, nothing is scaled. Check the API server, the network policy (`networkPolicies.apiServer`) and the service account's rights.",
  },
  {
    alert: "MargayWorkersCrash",
    expr: `${increase("margay_worker_restarts_total", ["role"], {}, "15m")} > 3`,
    after: "0m",
    severity: "warning",
    summary: "Workers of role {{ $labels.role }} crash again and again.",
    runbook:
      "The control plane's log has each one's last sentence; a worker without one was killed: look for the kernel's out-of-memory messages and compare `MARGAY_KV_MIB` with the memory there is.",
  },
  {
    alert: "MargayRanksLost",
    expr: `${over("max", "margay_workers", ["role"], { state: "lost" })} > 0`,
    after: "10m",
    severity: "warning",
    summary: "Ranks of role {{ $labels.role }} have been silent for minutes and have not been replaced.",
    runbook:
      "A rank that fell silent is replaced, unless its machine is unreachable or no room is left. `margay status` names it; look at its node.",
  },
  {
    alert: "MargayTransfersFail",
    expr: `${rate("margay_retries_total", [], { code: "transfer_failed" }, "5m")} > 0.05 * ${rate("margay_requests_total", [], {}, "5m")}`,
    after: "5m",
    severity: "warning",
    summary: "More than one in twenty requests has to be placed again because its KV did not arrive.",
    runbook:
      "`KV pages refused, by cause` says why: `checksum` means a damaged network path or memory; time-outs mean that decode ranks cannot reach prefill ranks: check the network policy and `MARGAY_KV_ADVERTISE`.",
  },
  {
    alert: "MargayKvScarce",
    expr: `${over("max", "margay_kv_used_share", ["role"], { role: "decode" })} > 0.95 and on () ${rate("margay_preemptions_total", [], {}, "5m")} > 0`,
    after: "5m",
    severity: "warning",
    summary: "Decode ranks are out of KV blocks and put streams off for others.",
    runbook:
      "Streams go on later and lose nothing but time. More decode workers, a larger `MARGAY_KV_MIB`, or fewer long requests at a time.",
  },
  {
    alert: "MargayBusLost",
    expr: `${over("min", "margay_bus_connected", ["instance"])} == 0`,
    after: "1m",
    severity: "critical",
    summary: "{{ $labels.instance }} has lost the message bus.",
    runbook:
      "New requests wait, streams that had begun go on when it is back. Look at NATS and at the network between; all processes connect again by themselves.",
  },
  {
    alert: "MargayBusDenied",
    expr: `${increase("margay_bus_denied_total", ["instance", "operation"], {}, "10m")} > 0`,
    after: "0m",
    severity: "warning",
    summary: "The NATS server denies {{ $labels.instance }} a {{ $labels.operation }}.",
    runbook:
      "The process runs with another role's user, or with a NATS configuration older than itself: render `helm/files/nats.conf` anew. The log line names the subject.",
  },
  {
    alert: "MargayExpertsUneven",
    expr: `${over("max", "margay_expert_imbalance", ["worker"], { map: "after" })} > 1.5`,
    after: "30m",
    severity: "warning",
    summary:
      "The busiest rank of {{ $labels.worker }} has half as much again to do as the others, and balancing does not help.",
    runbook:
      "A few experts are asked for most: give each rank room for more copies (`MARGAY_EP_SPARE`), or take more ranks. `Load of experts, over their mean` shows how few they are.",
  },
  {
    alert: "MargayGroupsFail",
    expr: `${increase("margay_groups_formed_total", ["role"], { outcome: "failed" }, "15m")} > 3`,
    after: "0m",
    severity: "warning",
    summary: "Ranks of role {{ $labels.role }} do not come together.",
    runbook:
      "The control plane's log names the ranks that did not join. They must reach each other's exchange ports (`MARGAY_EXCHANGE_ADVERTISE`), and hold the same model and numerics.",
  },
  {
    alert: "MargayLedgerLoses",
    expr: `${increase("margay_ledger_lost_total", ["instance"], {}, "15m")} > 0`,
    after: "0m",
    severity: "critical",
    summary: "{{ $labels.instance }} gave up entries of the ledger: what those requests cost is in no bill.",
    runbook:
      "The message bus was away for longer than entries can wait. Bring NATS back first; the log of the control plane says how many entries were lost.",
  },
  {
    alert: "MargayKeysFileUnusable",
    expr: `${over("min", "margay_keys_file_valid", ["instance"])} == 0`,
    after: "5m",
    severity: "warning",
    summary: "The keys file of {{ $labels.instance }} cannot be used; the keys before it hold.",
    runbook: "The log says which line is wrong. Until it is mended no key can be added or revoked.",
  },
];

export const ALERTS: readonly Alert[] = [...BUDGETS, ...STATES];
