import { z } from "zod";

/**
 * Every `MARGAY_*` environment variable, once. A process's `config.ts` picks the ones it reads; the README's table is
 * made from this list (test/docs.test.ts). Children inherit the environment, so a variable unknown to *all* of them is
 * the error, not one that a single process does not use.
 */
interface Setting<S extends z.ZodType> {
  readonly schema: S;
  /** What a user types when nothing is set, for the table; null: unset. */
  readonly default: string | null;
  readonly about: string;
}

function setting<S extends z.ZodType>(schema: S, fallback: string | null, about: string): Setting<S> {
  return { schema, default: fallback, about };
}

const whole = (min: number, max: number) =>
  z.string().regex(/^\d+$/, "must be a whole number").transform(Number).pipe(z.int().min(min).max(max));
const label = z
  .string()
  .regex(/^[a-z0-9]([-.a-z0-9]{0,61}[a-z0-9])?$/, "must be a Kubernetes name of at most 63 characters");
const text = z.string().min(1, "must not be empty");
const range = z
  .string()
  .regex(/^\d+\.\.\d+$/, "must be MIN..MAX, for example 0..2")
  .transform((value) => {
    const [min, max] = value.split("..").map(Number) as [number, number];
    return { min, max };
  })
  .refine(
    (value) => value.min <= value.max && value.max >= 1 && value.max <= 64,
    "must be MIN..MAX with MIN <= MAX and MAX within 1..64",
  );

export const SETTINGS = {
  MARGAY_HOST: setting(text, "127.0.0.1", "Address the HTTP gateway listens on."),
  MARGAY_PORT: setting(whole(0, 65535), "8000", "Port of the HTTP gateway; 0 takes any free one."),
  MARGAY_TLS_CERT_FILE: setting(
    text,
    null,
    "Certificate (PEM, with those between it and its authority) of the HTTP gateway, which then speaks HTTPS; read again when it changes.",
  ),
  MARGAY_TLS_KEY_FILE: setting(text, null, "Key of that certificate (PEM)."),
  MARGAY_TLS_CLIENT_CA_FILE: setting(
    text,
    null,
    "Authorities (PEM) of clients: whoever shows no certificate of theirs is refused. Probes and metrics need none.",
  ),
  MARGAY_KEYS_FILE: setting(
    text,
    null,
    "File of tenants and API keys (`margay keys create`), read again when it changes; unset: requests need no key.",
  ),
  MARGAY_API_KEY: setting(text, null, "Key that `margay send` presents."),
  MARGAY_MODEL: setting(
    text,
    "models/nano",
    "Checkpoint folder to serve. Several: comma-separated, each `folder` or `name=folder`; the default name is the folder's.",
  ),
  MARGAY_STATE_DIR: setting(text, ".margay", "Folder of NATS data, credentials, packed weights and compiled code."),
  MARGAY_PREFILL: setting(range, "0..2", "Fewest and most prefill workers per model, MIN..MAX."),
  MARGAY_DECODE: setting(range, "0..2", "Fewest and most decode workers per model, MIN..MAX."),
  MARGAY_TARGET: setting(
    z.enum(["process", "kube"]),
    "process",
    "Where workers run: as processes of this machine, or as pods of the Kubernetes cluster this control plane runs in.",
  ),
  MARGAY_KUBE_NAMESPACE: setting(label, null, "Namespace of the worker pools; unset: the control plane's own."),
  MARGAY_KUBE_RELEASE: setting(
    label,
    "margay",
    "Value of the label `app.kubernetes.io/instance` of the worker pools, and name of the leader lease.",
  ),
  MARGAY_POD_NAME: setting(label, null, "Name of the control plane's pod, for the leader lease and events."),
  MARGAY_PREFILL_EP: setting(
    whole(1, 1024),
    "1",
    "Ranks (processes) of one prefill worker: they step together and share out the experts.",
  ),
  MARGAY_DECODE_EP: setting(whole(1, 1024), "1", "Ranks of one decode worker, likewise."),
  MARGAY_EP_LEAST: setting(
    whole(1, 1024),
    "1",
    "Fewest ranks a worker goes on with when others are lost, until they are replaced.",
  ),
  MARGAY_EP_SPARE: setting(
    whole(0, 1024),
    "2",
    "Experts a rank may hold beyond its even share: room for replicas of hot ones.",
  ),
  MARGAY_EP_BALANCE_SECONDS: setting(
    whole(0, 86_400),
    "60",
    "How often the experts' load is looked at and evened out between the ranks of a worker; 0: never.",
  ),
  MARGAY_IDLE_SECONDS: setting(
    whole(1, 86_400),
    "300",
    "Workers above the minimum stop after this long without a request.",
  ),
  MARGAY_KEEP_ALIVE: setting(
    z.enum(["learned", "fixed"]),
    "learned",
    "`learned`: once enough pauses were seen, workers stay for as long as those of their model usually are; MARGAY_IDLE_SECONDS holds until then. `fixed`: it always holds.",
  ),
  MARGAY_TTFT_GOAL_MS: setting(
    whole(50, 600_000),
    "2000",
    "Time to the first token that the number of workers is planned for, in milliseconds.",
  ),
  MARGAY_BACKEND: setting(
    z.enum(["auto", "ref", "cpu"]),
    "auto",
    "Kernels: `cpu` (vectorised), `ref` (plain fp32, slow, the oracle).",
  ),
  MARGAY_THREADS: setting(whole(0, 1024), "0", "Compute threads of one worker; 0: one per core."),
  MARGAY_PIN_THREADS: setting(
    z.enum(["0", "1"]).transform((value) => value === "1"),
    "0",
    "1: each compute thread stays on a core of its own; for workers that were given cores (cpuset) which no other worker computes on.",
  ),
  MARGAY_KV_MIB: setting(whole(1, 16_777_216), "256", "KV pool of one worker, in MiB."),
  MARGAY_KV_TIER_MIB: setting(
    whole(0, 16_777_216),
    "0",
    "Room of one worker for cached KV pages that its pool has none for, in MiB; 0: they are lost.",
  ),
  MARGAY_KV_TIER_FOLDER: setting(
    text,
    null,
    "Folder of the file that holds them, gone with the worker; unset: they stay in memory.",
  ),
  MARGAY_SLOTS: setting(whole(1, 4096), "64", "Most requests at once on one worker."),
  MARGAY_STEP_TOKENS: setting(whole(1, 65_536), "256", "Most tokens one step computes: the budget of chunked prefill."),
  MARGAY_TPOT_GOAL_MS: setting(
    whole(0, 60_000),
    "0",
    "A decode worker takes no further request while a step would then take longer than this, in milliseconds, and the number of decode workers is planned for it; 0: no goal.",
  ),
  MARGAY_LOCAL_PREFILL_TOKENS: setting(
    whole(0, 131_072),
    "0",
    "A decode worker computes a prompt itself when at most this many of its tokens are not in its cache; 0: never.",
  ),
  MARGAY_LATENT_NORM_EPS: setting(
    z.string().transform(Number).pipe(z.number().gt(0).lt(1)),
    null,
    "Epsilon of the two latent norms; unset: the checkpoint's rms_norm_eps. 1e-6 matches transformers.",
  ),
  MARGAY_WEIGHT_FORMAT: setting(
    z.enum(["checkpoint", "int8"]),
    "checkpoint",
    "`int8`: linear layers in int8 with one scale per output, made at load. Half the memory traffic of bf16, and lossy.",
  ),
  MARGAY_DETERMINISTIC: setting(
    z.enum(["0", "1"]).transform((value) => value === "1"),
    "0",
    "1: a request's text does not depend on the batch around it, the chunking, the threads or the workers it passes.",
  ),
  MARGAY_SPECULATION: setting(
    whole(0, 7),
    "1",
    "Most draft tokens per request and step, where the checkpoint has a draft layer; 0: none, and no KV for it. Prefill and decode workers must agree on whether there are any.",
  ),
  MARGAY_PACKED_WEIGHTS: setting(
    z.enum(["on", "off"]),
    "on",
    "Keep packed weights in the state folder, shared by all workers of the host.",
  ),
  MARGAY_KV_TRANSPORT: setting(
    z.enum(["auto", "tcp"]),
    "auto",
    "How KV moves: shared memory on one host and TCP between hosts, or TCP always.",
  ),
  MARGAY_KV_HOST: setting(text, "127.0.0.1", "Address a decode worker listens on for KV."),
  MARGAY_KV_PORT: setting(
    whole(0, 65535),
    "0",
    "Port the first rank of a decode worker listens on for KV, the next rank has the next one; 0 takes any free ones.",
  ),
  MARGAY_KV_ADVERTISE: setting(
    z.string().regex(/^(localhost|\d{1,3}(\.\d{1,3}){3}):\d{1,5}$/, "must be an IPv4 address and a port, ADDRESS:PORT"),
    null,
    "ADDRESS:PORT of a worker's first rank, told to prefill workers where it differs from the one listened on; the next rank has the next port.",
  ),
  MARGAY_KV_TLS_CERT_FILE: setting(
    text,
    null,
    "Certificate (PEM) that a worker shows when KV goes over TCP, which is then TLS with certificates on both sides; with its key and the authority. Read for every connection.",
  ),
  MARGAY_KV_TLS_KEY_FILE: setting(text, null, "Key of that certificate (PEM)."),
  MARGAY_KV_TLS_CA_FILE: setting(
    text,
    null,
    "Authority (PEM) of the certificates that workers show each other; names are not looked at, so it should have issued no others.",
  ),
  MARGAY_EXCHANGE_TRANSPORT: setting(
    z.enum(["auto", "tcp"]),
    "auto",
    "How ranks of one worker exchange rows: shared memory on one host and TCP between hosts, or TCP always.",
  ),
  MARGAY_EXCHANGE_PAYLOAD: setting(
    z.enum(["bf16", "fp8"]),
    "bf16",
    "How rows travel to experts of other ranks. `fp8`: e4m3 with a scale per 128 values, half the bytes, and lossy. Deterministic workers send bf16.",
  ),
  MARGAY_EXCHANGE_HOST: setting(text, "127.0.0.1", "Address a rank listens on for the others of its worker."),
  MARGAY_EXCHANGE_PORT: setting(
    whole(0, 65535),
    "0",
    "Port of a worker's first rank for the others, the next rank has the next one; 0 takes any free ones.",
  ),
  MARGAY_EXCHANGE_ADVERTISE: setting(
    z.string().regex(/^(localhost|\d{1,3}(\.\d{1,3}){3}):\d{1,5}$/, "must be an IPv4 address and a port, ADDRESS:PORT"),
    null,
    "ADDRESS:PORT of a worker's first rank, told to the others where it differs from the one listened on; the next rank has the next port.",
  ),
  MARGAY_EXCHANGE_DEADLINE_MS: setting(
    whole(50, 600_000),
    "1500",
    "Longest wait of a rank for another one within a step, in milliseconds; then the group is formed anew.",
  ),
  MARGAY_HEALTH_HOST: setting(text, "127.0.0.1", "Address of a worker's health and metrics server."),
  MARGAY_HEALTH_PORT: setting(
    whole(0, 65535),
    "0",
    "Port of a worker's health and metrics server; 0 takes any free one.",
  ),
  MARGAY_WORKER_ID: setting(
    z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, "must be 1 to 64 letters, digits, _ or -"),
    null,
    "Name of a worker; set by whoever starts it.",
  ),
  MARGAY_RANK: setting(whole(0, 1023), "0", "Number of a process among its worker's ranks; set by whoever starts it."),
  MARGAY_RANKS: setting(whole(1, 1024), "1", "Ranks of the worker; set by whoever starts it."),
  MARGAY_MODEL_NAME: setting(text, null, "Name of the one model a worker serves; set by whoever starts it."),
  MARGAY_NATS_URL: setting(text, null, "An existing NATS server; unset: `npm start` runs one."),
  MARGAY_NATS_USER: setting(text, null, "NATS user of this process."),
  MARGAY_NATS_PASSWORD: setting(text, null, "NATS password of this process."),
  MARGAY_NATS_CA_FILE: setting(
    text,
    null,
    "Authority (PEM) that the NATS server's certificate must be of: the connection is then TLS or nothing. Unset: as the address says, with the authorities Node knows.",
  ),
  MARGAY_NATS_CERT_FILE: setting(
    text,
    null,
    "Certificate (PEM) that this process shows the NATS server; together with its key.",
  ),
  MARGAY_NATS_KEY_FILE: setting(text, null, "Key of that certificate (PEM)."),
  MARGAY_MAX_WAITING: setting(
    whole(1, 1_000_000),
    "1000",
    "Most requests per model that wait for a worker; further ones get 429.",
  ),
  MARGAY_WAIT_SECONDS: setting(whole(1, 3600), "120", "Longest wait for a worker; then 503 with Retry-After."),
  MARGAY_REQUEST_SECONDS: setting(whole(1, 86_400), "600", "Longest life of one request."),
  MARGAY_RESPONSE_HOURS: setting(whole(1, 8760), "24", "How long stored responses (`/v1/responses`) are kept."),
  MARGAY_RESPONSE_MIB: setting(
    whole(1, 512),
    "256",
    "Room for stored responses in NATS, in MiB; when it is full the oldest go.",
  ),
  MARGAY_FILE_HOURS: setting(whole(1, 8760), "720", "How long files (`/v1/files`) and batches are kept."),
  MARGAY_FILE_MIB: setting(
    whole(4, 3072),
    "256",
    "Room for files in NATS, in MiB; a tenant's own are at most half of it, and what has no room is refused.",
  ),
  MARGAY_UPLOAD_MIB: setting(whole(1, 1024), "64", "Largest file of `/v1/files`, in MiB."),
  MARGAY_BATCH_LINES: setting(whole(1, 1024), "16", "Requests of one batch that are under way at a time."),
  MARGAY_BODY_MIB: setting(whole(1, 1024), "10", "Largest request body, in MiB."),
  MARGAY_MAX_N: setting(whole(1, 128), "16", "Largest `n` of one request."),
  MARGAY_MAX_THINKERS: setting(whole(1, 64), "8", "Largest `x-margay-thinkers` of one request."),
  MARGAY_DRAIN_SECONDS: setting(
    whole(0, 3600),
    "30",
    "Time running requests get to finish when a process is asked to stop.",
  ),
  MARGAY_TRACE_ENDPOINT: setting(
    z.url({ protocol: /^https?$/, error: "must be an http address" }).transform((url) => url.replace(/\/$/, "")),
    null,
    "OTLP collector over HTTP that spans are sent to, without `/v1/traces`; unset: nothing is traced.",
  ),
  MARGAY_TRACE_SAMPLE: setting(
    z
      .string()
      .regex(/^(0(\.\d+)?|1(\.0+)?)$/, "must be from 0 to 1")
      .transform(Number),
    "0.01",
    "Share of the requests that is traced; a caller's `traceparent` goes before it.",
  ),
  MARGAY_LOG_LEVEL: setting(
    z.enum(["debug", "info", "warn", "error", "silent"]),
    "info",
    "Least severe log line written.",
  ),
} as const;

type Settings = typeof SETTINGS;
export type SettingName = keyof Settings;
type ValueOf<N extends SettingName> = Settings[N]["default"] extends null
  ? z.output<Settings[N]["schema"]> | null
  : z.output<Settings[N]["schema"]>;

function isSetting(name: string): name is SettingName {
  return name in SETTINGS;
}

/** Settings that could not be understood, each in one line. */
export class SettingsError extends Error {
  override readonly name = "SettingsError";
}

/**
 * Parses the named settings out of `environment` (a `config.ts` passes `process.env`). Throws one `SettingsError` that
 * lists every unknown `MARGAY_*` name and every bad value at once, those of settings not asked for included: a mistake
 * meant for a worker is found by whoever reads the environment first.
 */
export function readSettings<N extends SettingName>(
  environment: Readonly<Record<string, string | undefined>>,
  names: readonly N[],
): { readonly [K in N]: ValueOf<K> } {
  const problems: string[] = [];
  const parsed = new Map<string, unknown>();
  const parse = (name: SettingName, raw: string): void => {
    const result = SETTINGS[name].schema.safeParse(raw);
    if (result.success) parsed.set(name, result.data);
    else problems.push(`${name}=${raw}: ${result.error.issues[0]?.message ?? "is not valid"}`);
  };
  for (const [name, raw] of Object.entries(environment)) {
    if (!name.startsWith("MARGAY_") || raw === undefined) continue;
    if (isSetting(name)) parse(name, raw);
    else problems.push(`${name} is not a setting of Margay`);
  }
  const values: Record<string, unknown> = {};
  for (const name of names) {
    const { default: fallback } = SETTINGS[name];
    if (environment[name] === undefined && fallback !== null) parse(name, fallback);
    values[name] = parsed.get(name) ?? null;
  }
  if (problems.length > 0) throw new SettingsError(problems.join("\n"));
  return values as { readonly [K in N]: ValueOf<K> };
}
