import { basename, resolve } from "node:path";
import { ModelName } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import { type NatsAccess, natsAccess } from "#service/nats-access.ts";
import type { ServiceConfig } from "#service/run-service.ts";
import { readSettings, SettingsError } from "#service/settings.ts";
import type { TracingConfig } from "#service/tracing/tracing.ts";
import type { EdgeTlsFiles } from "./gateway/edge-tls.ts";
import type { GatewayConfig } from "./gateway/gateway.ts";
import type { BalanceRules } from "./groups/group-balancer.ts";
import type { GroupRules } from "./groups/group-plan.ts";
import type { ScalingRules } from "./scaling/planner.ts";

export interface ControlPlaneConfig extends ServiceConfig {
  readonly gateway: GatewayConfig;
  readonly tracing: TracingConfig;
  /** null: the gateway speaks plain HTTP. */
  readonly tls: EdgeTlsFiles | null;
  /** null: requests need no key. */
  readonly keysFile: string | null;
  /** Checkpoint folder of each model, in the order they are listed. */
  readonly models: ReadonlyMap<ModelName, string>;
  readonly stateFolder: string;
  readonly nats: NatsAccess;
  readonly scaling: ScalingRules;
  /** null: workers are processes of this machine. */
  readonly kube: KubeConfig | null;
  /** Ranks of one worker of each role. */
  readonly ranks: Readonly<Record<Role, number>>;
  readonly groups: GroupRules & BalanceRules;
  readonly localPrefillTokens: number;
  readonly mostWaiting: number;
  readonly waitMs: number;
  /** What worker processes inherit: where programs are, and every setting that may concern them. */
  readonly workerEnvironment: Readonly<Record<string, string>>;
}

export interface KubeConfig {
  /** null: that of the service account. */
  readonly namespace: string | null;
  readonly release: string;
  readonly podName: string | null;
}

/** Settings that are no worker's business: each has a health port of its own, and no use for keys. */
const NOT_INHERITED = [
  ...["MARGAY_HEALTH_PORT", "MARGAY_KEYS_FILE", "MARGAY_API_KEY"],
  ...["MARGAY_TLS_CERT_FILE", "MARGAY_TLS_KEY_FILE", "MARGAY_TLS_CLIENT_CA_FILE"],
];
/** Variables that are not Margay's and that a program needs to run as its user does, and to start as fast. */
const INHERITED = ["PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_ALL", "NODE_COMPILE_CACHE"];

/** Parses the environment of a control plane. Throws `SettingsError`. */
export function readControlPlaneConfig(
  environment: Readonly<Record<string, string | undefined>> = process.env,
): ControlPlaneConfig {
  const s = readSettings(environment, [
    "MARGAY_HOST",
    "MARGAY_PORT",
    "MARGAY_TLS_CERT_FILE",
    "MARGAY_TLS_KEY_FILE",
    "MARGAY_TLS_CLIENT_CA_FILE",
    "MARGAY_KEYS_FILE",
    "MARGAY_MODEL",
    "MARGAY_STATE_DIR",
    "MARGAY_PREFILL",
    "MARGAY_DECODE",
    "MARGAY_TARGET",
    "MARGAY_KUBE_NAMESPACE",
    "MARGAY_KUBE_RELEASE",
    "MARGAY_POD_NAME",
    "MARGAY_PREFILL_EP",
    "MARGAY_DECODE_EP",
    "MARGAY_EP_LEAST",
    "MARGAY_EP_SPARE",
    "MARGAY_EP_BALANCE_SECONDS",
    "MARGAY_IDLE_SECONDS",
    "MARGAY_KEEP_ALIVE",
    "MARGAY_TTFT_GOAL_MS",
    "MARGAY_TPOT_GOAL_MS",
    "MARGAY_LOCAL_PREFILL_TOKENS",
    "MARGAY_NATS_URL",
    "MARGAY_NATS_USER",
    "MARGAY_NATS_PASSWORD",
    "MARGAY_NATS_CA_FILE",
    "MARGAY_NATS_CERT_FILE",
    "MARGAY_NATS_KEY_FILE",
    "MARGAY_MAX_WAITING",
    "MARGAY_WAIT_SECONDS",
    "MARGAY_REQUEST_SECONDS",
    "MARGAY_RESPONSE_HOURS",
    "MARGAY_RESPONSE_MIB",
    "MARGAY_FILE_HOURS",
    "MARGAY_FILE_MIB",
    "MARGAY_UPLOAD_MIB",
    "MARGAY_BATCH_LINES",
    "MARGAY_BODY_MIB",
    "MARGAY_MAX_N",
    "MARGAY_MAX_THINKERS",
    "MARGAY_DRAIN_SECONDS",
    "MARGAY_TRACE_ENDPOINT",
    "MARGAY_TRACE_SAMPLE",
    "MARGAY_LOG_LEVEL",
  ]);
  if (s.MARGAY_NATS_URL === null) {
    throw new SettingsError("MARGAY_NATS_URL is not set: `margay up` starts a NATS server and sets it");
  }
  const workerEnvironment: Record<string, string> = {};
  for (const [name, value] of Object.entries(environment)) {
    const inherited = INHERITED.includes(name) || (name.startsWith("MARGAY_") && !NOT_INHERITED.includes(name));
    if (value !== undefined && inherited) workerEnvironment[name] = value;
  }
  return {
    logLevel: s.MARGAY_LOG_LEVEL,
    drainMs: s.MARGAY_DRAIN_SECONDS * 1000,
    gateway: {
      host: s.MARGAY_HOST,
      port: s.MARGAY_PORT,
      bodyLimitBytes: s.MARGAY_BODY_MIB * 1024 * 1024,
      maxN: s.MARGAY_MAX_N,
      maxThinkers: s.MARGAY_MAX_THINKERS,
      requestMs: s.MARGAY_REQUEST_SECONDS * 1000,
      responses: {
        maxAgeMs: s.MARGAY_RESPONSE_HOURS * 3_600_000,
        maxBytes: s.MARGAY_RESPONSE_MIB * 1024 * 1024,
      },
      files: {
        maxAgeMs: s.MARGAY_FILE_HOURS * 3_600_000,
        maxBytes: s.MARGAY_FILE_MIB * 1024 * 1024,
        maxFileBytes: s.MARGAY_UPLOAD_MIB * 1024 * 1024,
      },
      batchLines: s.MARGAY_BATCH_LINES,
    },
    tracing: { endpoint: s.MARGAY_TRACE_ENDPOINT, sample: s.MARGAY_TRACE_SAMPLE },
    tls: edgeTlsFiles(s.MARGAY_TLS_CERT_FILE, s.MARGAY_TLS_KEY_FILE, s.MARGAY_TLS_CLIENT_CA_FILE),
    keysFile: s.MARGAY_KEYS_FILE === null ? null : resolve(s.MARGAY_KEYS_FILE),
    models: parseModels(s.MARGAY_MODEL),
    stateFolder: resolve(s.MARGAY_STATE_DIR),
    nats: natsAccess(s, s.MARGAY_NATS_URL),
    scaling: {
      ...{ prefill: s.MARGAY_PREFILL, decode: s.MARGAY_DECODE },
      keepAlive: { fixedMs: s.MARGAY_IDLE_SECONDS * 1000, learned: s.MARGAY_KEEP_ALIVE === "learned" },
      ...{ ttftGoalMs: s.MARGAY_TTFT_GOAL_MS, tpotGoalMs: s.MARGAY_TPOT_GOAL_MS },
    },
    kube:
      s.MARGAY_TARGET === "process"
        ? null
        : { namespace: s.MARGAY_KUBE_NAMESPACE, release: s.MARGAY_KUBE_RELEASE, podName: s.MARGAY_POD_NAME },
    ranks: { prefill: s.MARGAY_PREFILL_EP, decode: s.MARGAY_DECODE_EP },
    groups: {
      leastRanks: s.MARGAY_EP_LEAST,
      sparePerRank: s.MARGAY_EP_SPARE,
      balanceMs: s.MARGAY_EP_BALANCE_SECONDS * 1000,
    },
    localPrefillTokens: s.MARGAY_LOCAL_PREFILL_TOKENS,
    mostWaiting: s.MARGAY_MAX_WAITING,
    waitMs: s.MARGAY_WAIT_SECONDS * 1000,
    workerEnvironment,
  };
}

/** null: the gateway speaks plain HTTP. */
function edgeTlsFiles(certificate: string | null, key: string | null, authority: string | null): EdgeTlsFiles | null {
  if (certificate === null && key === null && authority === null) return null;
  if (certificate === null || key === null) {
    const missing = certificate === null ? "MARGAY_TLS_CERT_FILE" : "MARGAY_TLS_KEY_FILE";
    throw new SettingsError(`${missing} is not set: HTTPS needs a certificate and its key`);
  }
  return {
    certificate: resolve(certificate),
    key: resolve(key),
    clientAuthority: authority === null ? null : resolve(authority),
  };
}

/** `folder` or `name=folder`, separated by commas. */
function parseModels(text: string): ReadonlyMap<ModelName, string> {
  const models = new Map<ModelName, string>();
  for (const entry of text.split(",")) {
    const [, given, path] = /^(?:([^=]*)=)?(.*)$/s.exec(entry.trim())!;
    const folder = resolve(path!);
    const name = ModelName.safeParse(given ?? basename(folder));
    if (path === "" || !name.success)
      throw new SettingsError(`MARGAY_MODEL=${text}: each entry must be FOLDER or NAME=FOLDER`);
    if (models.has(name.data)) throw new SettingsError(`MARGAY_MODEL=${text}: the name ${name.data} stands twice`);
    models.set(name.data, folder);
  }
  return models;
}
