import { basename, join, resolve } from "node:path";
import { ModelName, RankId, rankIdOf, WorkerId } from "#protocol/ids.ts";
import type { Role } from "#protocol/worker.ts";
import type { Random } from "./clock.ts";
import { type NatsAccess, natsAccess } from "./nats-access.ts";
import type { ServiceConfig } from "./run-service.ts";
import { readSettings, SettingsError } from "./settings.ts";

/** What a worker process is told from outside, whatever its role. */
export interface WorkerConfig extends ServiceConfig {
  /** null: nobody chose a name. */
  readonly workerId: WorkerId | null;
  /** Number of this process among its worker's ranks, and how many those are. */
  readonly rank: number;
  readonly ranks: number;
  readonly modelName: ModelName;
  readonly nats: NatsAccess;
  readonly health: { readonly host: string; readonly port: number };
  /** HOST:PORT told to prefill ranks where it differs from the address listened on. */
  readonly kvAdvertise: HostPort | null;
  /** HOST:PORT told to the other ranks of the worker, likewise. */
  readonly exchangeAdvertise: HostPort | null;
  /** Where spans are sent; null: nowhere. */
  readonly traceEndpoint: string | null;
  /** Longest step a decode rank admits requests for, in milliseconds; 0: any. */
  readonly tpotGoalMs: number;
  readonly engine: {
    readonly modelFolder: string;
    readonly backend: "auto" | "ref" | "cpu";
    readonly threads: number;
    readonly pinThreads: boolean;
    readonly packedFolder: string | null;
    readonly latentNormEps: number | null;
    readonly weightFormat: "checkpoint" | "int8";
    readonly deterministic: boolean;
    readonly speculation: number;
    readonly slots: number;
    readonly kvBlocks: number;
    readonly kvBytes: number;
    readonly kvTierBytes: number;
    readonly kvTierFolder: string | null;
    readonly maxStepTokens: number;
    readonly kvHost: string;
    readonly kvPort: number;
    readonly kvTransport: "auto" | "tcp";
    readonly kvTls: { readonly certificate: string; readonly key: string; readonly authority: string } | null;
    /** Of one of several ranks. */
    readonly group?: {
      readonly ranks: number;
      readonly exchangeHost: string;
      readonly exchangePort: number;
      readonly exchangeTransport: "auto" | "tcp";
      readonly exchangePayload: "bf16" | "fp8";
      readonly exchangeDeadlineMs: number;
    };
  };
}

interface HostPort {
  readonly host: string;
  readonly port: number;
}

/** Parses the environment of a worker. Throws `SettingsError`. */
export function readWorkerConfig(environment: Readonly<Record<string, string | undefined>>): WorkerConfig {
  const settings = readSettings(environment, [
    "MARGAY_MODEL",
    "MARGAY_MODEL_NAME",
    "MARGAY_STATE_DIR",
    "MARGAY_WORKER_ID",
    "MARGAY_RANK",
    "MARGAY_RANKS",
    "MARGAY_BACKEND",
    "MARGAY_THREADS",
    "MARGAY_PIN_THREADS",
    "MARGAY_KV_MIB",
    "MARGAY_KV_TIER_MIB",
    "MARGAY_KV_TIER_FOLDER",
    "MARGAY_SLOTS",
    "MARGAY_STEP_TOKENS",
    "MARGAY_TPOT_GOAL_MS",
    "MARGAY_LATENT_NORM_EPS",
    "MARGAY_WEIGHT_FORMAT",
    "MARGAY_DETERMINISTIC",
    "MARGAY_SPECULATION",
    "MARGAY_PACKED_WEIGHTS",
    "MARGAY_KV_TRANSPORT",
    "MARGAY_KV_HOST",
    "MARGAY_KV_PORT",
    "MARGAY_KV_ADVERTISE",
    "MARGAY_KV_TLS_CERT_FILE",
    "MARGAY_KV_TLS_KEY_FILE",
    "MARGAY_KV_TLS_CA_FILE",
    "MARGAY_EXCHANGE_TRANSPORT",
    "MARGAY_EXCHANGE_PAYLOAD",
    "MARGAY_EXCHANGE_HOST",
    "MARGAY_EXCHANGE_PORT",
    "MARGAY_EXCHANGE_ADVERTISE",
    "MARGAY_EXCHANGE_DEADLINE_MS",
    "MARGAY_HEALTH_HOST",
    "MARGAY_HEALTH_PORT",
    "MARGAY_NATS_URL",
    "MARGAY_NATS_USER",
    "MARGAY_NATS_PASSWORD",
    "MARGAY_NATS_CA_FILE",
    "MARGAY_NATS_CERT_FILE",
    "MARGAY_NATS_KEY_FILE",
    "MARGAY_DRAIN_SECONDS",
    "MARGAY_TRACE_ENDPOINT",
    "MARGAY_LOG_LEVEL",
  ]);
  if (settings.MARGAY_NATS_URL === null) {
    throw new SettingsError("MARGAY_NATS_URL is not set: a worker needs the NATS server its control plane uses");
  }
  const modelFolder = resolve(settings.MARGAY_MODEL);
  const packed = settings.MARGAY_PACKED_WEIGHTS === "on";
  const { MARGAY_RANK: rank, MARGAY_RANKS: ranks } = settings;
  if (rank >= ranks) throw new SettingsError(`MARGAY_RANK=${rank}: must be less than MARGAY_RANKS=${ranks}`);
  if (settings.MARGAY_DETERMINISTIC && settings.MARGAY_EXCHANGE_PAYLOAD === "fp8") {
    throw new SettingsError("MARGAY_EXCHANGE_PAYLOAD=fp8: deterministic workers exchange bf16");
  }
  const group = {
    ranks,
    exchangeHost: settings.MARGAY_EXCHANGE_HOST,
    exchangePort: portOf(settings.MARGAY_EXCHANGE_PORT, rank),
    exchangeTransport: settings.MARGAY_EXCHANGE_TRANSPORT,
    exchangePayload: settings.MARGAY_EXCHANGE_PAYLOAD,
    exchangeDeadlineMs: settings.MARGAY_EXCHANGE_DEADLINE_MS,
  };
  return {
    logLevel: settings.MARGAY_LOG_LEVEL,
    drainMs: settings.MARGAY_DRAIN_SECONDS * 1000,
    workerId: settings.MARGAY_WORKER_ID === null ? null : WorkerId.parse(settings.MARGAY_WORKER_ID),
    rank,
    ranks,
    modelName: ModelName.parse(settings.MARGAY_MODEL_NAME ?? basename(modelFolder)),
    nats: natsAccess(settings, settings.MARGAY_NATS_URL),
    health: { host: settings.MARGAY_HEALTH_HOST, port: settings.MARGAY_HEALTH_PORT },
    kvAdvertise: advertised(settings.MARGAY_KV_ADVERTISE, rank),
    exchangeAdvertise: advertised(settings.MARGAY_EXCHANGE_ADVERTISE, rank),
    traceEndpoint: settings.MARGAY_TRACE_ENDPOINT,
    tpotGoalMs: settings.MARGAY_TPOT_GOAL_MS,
    engine: {
      modelFolder,
      backend: settings.MARGAY_BACKEND,
      threads: settings.MARGAY_THREADS,
      pinThreads: settings.MARGAY_PIN_THREADS,
      packedFolder: packed ? join(resolve(settings.MARGAY_STATE_DIR), "packed") : null,
      latentNormEps: settings.MARGAY_LATENT_NORM_EPS,
      weightFormat: settings.MARGAY_WEIGHT_FORMAT,
      deterministic: settings.MARGAY_DETERMINISTIC,
      speculation: settings.MARGAY_SPECULATION,
      slots: settings.MARGAY_SLOTS,
      kvBlocks: 0,
      kvBytes: settings.MARGAY_KV_MIB * 1024 * 1024,
      kvTierBytes: settings.MARGAY_KV_TIER_MIB * 1024 * 1024,
      kvTierFolder: settings.MARGAY_KV_TIER_FOLDER === null ? null : resolve(settings.MARGAY_KV_TIER_FOLDER),
      maxStepTokens: settings.MARGAY_STEP_TOKENS,
      kvHost: settings.MARGAY_KV_HOST,
      kvPort: portOf(settings.MARGAY_KV_PORT, rank),
      kvTransport: settings.MARGAY_KV_TRANSPORT,
      kvTls: kvTlsFiles(settings),
      ...(ranks === 1 ? {} : { group }),
    },
  };
}

function kvTlsFiles(settings: {
  readonly MARGAY_KV_TLS_CERT_FILE: string | null;
  readonly MARGAY_KV_TLS_KEY_FILE: string | null;
  readonly MARGAY_KV_TLS_CA_FILE: string | null;
}): WorkerConfig["engine"]["kvTls"] {
  const {
    MARGAY_KV_TLS_CERT_FILE: certificate,
    MARGAY_KV_TLS_KEY_FILE: key,
    MARGAY_KV_TLS_CA_FILE: authority,
  } = settings;
  if (certificate === null && key === null && authority === null) return null;
  if (certificate !== null && key !== null && authority !== null) {
    return { certificate: resolve(certificate), key: resolve(key), authority: resolve(authority) };
  }
  const names = ["MARGAY_KV_TLS_CERT_FILE", "MARGAY_KV_TLS_KEY_FILE", "MARGAY_KV_TLS_CA_FILE"] as const;
  const missing = names.filter((name) => settings[name] === null).join(" and ");
  throw new SettingsError(
    `${missing} not set: TLS of KV needs a certificate, its key and the authority of the others'`,
  );
}

/** What of an engine's settings makes its numbers, and so its KV, others than those of another one: in words. */
export function numericsOf(engine: Pick<WorkerConfig["engine"], "deterministic" | "weightFormat">): string {
  const words = [engine.deterministic ? "deterministic" : "", engine.weightFormat === "int8" ? "int8" : ""];
  return words.filter((word) => word !== "").join(" ") || "plain";
}

/** Ranks of one worker share their settings: each has a port of its own from the first rank's on. */
function portOf(first: number, rank: number): number {
  return first === 0 ? 0 : first + rank;
}

function advertised(text: string | null, rank: number): HostPort | null {
  const [host, port] = text?.split(":") ?? [];
  return host === undefined ? null : { host, port: Number(port) + rank };
}

/** The names of this process: those given, or made up. */
export function workerNames(
  config: WorkerConfig,
  role: Role,
  random: Random,
): { readonly workerId: WorkerId; readonly rankId: RankId } {
  const workerId = config.workerId ?? WorkerId.parse(`${role}-${random.hex(4)}`);
  return { workerId, rankId: RankId.parse(rankIdOf(workerId, config.rank)) };
}
