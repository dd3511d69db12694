import { z } from "zod";
import { DECIMAL, microsOf } from "./money.ts";

/** Classes of service, the most urgent first. A class goes before the next one's requests that came a little earlier. */
export const SERVICE_CLASSES = ["high", "normal", "low"] as const;
export type ServiceClass = (typeof SERVICE_CLASSES)[number];

const name = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/, "must be 1 to 64 letters, digits, _, . or -");
const amount = z
  .string('must be an amount in quotes, for example "12.50"')
  .regex(DECIMAL, "must be digits with at most six decimal places")
  .transform(microsOf);
const limit = z.int("must be a whole number").min(1, "must be at least 1").max(1e12, "must be at most 1e12").nullish();
const models = z.array(z.string().min(1), "must be a list of model names").min(1, "must name at least one model");

const Limits = z
  .strictObject({
    requestsPerMinute: limit,
    inputTokensPerMinute: limit,
    outputTokensPerMinute: limit,
    tokensPerMinute: limit,
    concurrency: limit,
    monthlyBudget: amount.nullish(),
  })
  .transform((limits) => ({
    requestsPerMinute: limits.requestsPerMinute ?? null,
    inputTokensPerMinute: limits.inputTokensPerMinute ?? null,
    outputTokensPerMinute: limits.outputTokensPerMinute ?? null,
    tokensPerMinute: limits.tokensPerMinute ?? null,
    concurrency: limits.concurrency ?? null,
    /** Micro-units of the currency per calendar month (UTC). */
    monthlyBudget: limits.monthlyBudget ?? null,
  }));
/** What a tenant may use; null: as much as there is. */
export type Limits = z.output<typeof Limits>;

export const NO_LIMITS: Limits = Limits.parse({});

const TenantEntry = z.strictObject({
  organisation: z.string().max(200).nullish(),
  models: models.nullish(),
  weight: z.number("must be a number").min(0.01, "must be at least 0.01").max(100, "must be at most 100").default(1),
  priority: z.enum(SERVICE_CLASSES, 'must be "high", "normal" or "low"').default("normal"),
  limits: Limits.default(NO_LIMITS),
});

const KeyEntry = z.strictObject({
  name,
  tenant: name,
  sha256: z.string().regex(/^[0-9a-f]{64}$/, "must be 64 hexadecimal digits, as `margay keys create` prints them"),
  models: models.nullish(),
  admin: z.boolean("must be true or false").default(false),
  expires: z.iso.datetime({ offset: true, error: "must be a time, for example 2027-01-31T00:00:00Z" }).nullish(),
});

const price = amount.default(0);
const ModelPrice = z.strictObject({
  input: price,
  cachedInput: amount.nullish(),
  output: price,
  prefillGpuHour: price,
  decodeGpuHour: price,
});

const KeyFileSchema = z.strictObject({
  tenants: z.record(name, TenantEntry, "must be an object of tenants by name"),
  keys: z.array(KeyEntry, "must be a list of keys"),
  prices: z
    .strictObject({
      currency: z.string().regex(/^[A-Z]{3}$/, "must be three capital letters, for example USD"),
      models: z.record(z.string(), ModelPrice),
    })
    .nullish(),
});

/** Who sends requests, and what it may. */
export interface Tenant {
  readonly name: string;
  readonly organisation: string | null;
  /** null: all. */
  readonly models: ReadonlySet<string> | null;
  /** Its share of a busy system, against that of others. */
  readonly weight: number;
  /** The most urgent class its requests may ask for. */
  readonly priority: ServiceClass;
  readonly limits: Limits;
}

export interface ApiKey {
  readonly name: string;
  readonly digest: string;
  readonly tenant: Tenant;
  /** Of those of the tenant; null: all of them. */
  readonly models: ReadonlySet<string> | null;
  /** May read what every tenant used. */
  readonly admin: boolean;
  /** Epoch milliseconds; null: never. */
  readonly expiresMs: number | null;
}

/** Micro-units of the currency per million tokens, and per hour of a GPU. */
export interface ModelPrice {
  readonly input: number;
  readonly cachedInput: number;
  readonly output: number;
  readonly prefillGpuHour: number;
  readonly decodeGpuHour: number;
}

export interface KeySet {
  /** By digest. */
  readonly keys: ReadonlyMap<string, ApiKey>;
  readonly tenants: ReadonlyMap<string, Tenant>;
  readonly currency: string;
  readonly prices: ReadonlyMap<string, ModelPrice>;
}

/** A keys file that could not be understood: one line per fault, each naming its field. Never quotes a value. */
export class KeyFileError extends Error {
  override readonly name = "KeyFileError";
}

/** Parses the text of a keys file. Throws `KeyFileError`. */
export function parseKeyFile(text: string): KeySet {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    // The engine's message would quote the file.
    throw new KeyFileError("the file is not valid JSON");
  }
  const parsed = KeyFileSchema.safeParse(json);
  if (!parsed.success) throw new KeyFileError(parsed.error.issues.map(faultOf).join("\n"));
  const { tenants: entries, keys: keyEntries, prices: priceList } = parsed.data;
  const tenants = new Map(
    Object.entries(entries).map(([tenantName, { organisation, models: allowed, ...rest }]) => [
      tenantName,
      { name: tenantName, organisation: organisation ?? null, models: setOf(allowed), ...rest },
    ]),
  );
  const faults: string[] = [];
  if (!priceList) {
    for (const { name: tenant, limits } of tenants.values()) {
      if (limits.monthlyBudget !== null)
        faults.push(`tenants.${tenant}.limits.monthlyBudget needs prices, and the file has none`);
    }
  }
  const keys = new Map<string, ApiKey>();
  const names = new Set<string>();
  for (const [index, entry] of keyEntries.entries()) {
    const tenant = tenants.get(entry.tenant);
    if (tenant === undefined) faults.push(`keys[${index}].tenant is not one of the file's tenants`);
    if (names.has(entry.name)) faults.push(`keys[${index}].name stands twice`);
    if (keys.has(entry.sha256)) faults.push(`keys[${index}].sha256 stands twice`);
    names.add(entry.name);
    if (tenant === undefined) continue;
    keys.set(entry.sha256, {
      ...{ name: entry.name, digest: entry.sha256, tenant, admin: entry.admin, models: setOf(entry.models) },
      expiresMs: entry.expires ? Date.parse(entry.expires) : null,
    });
  }
  if (faults.length > 0) throw new KeyFileError(faults.join("\n"));
  const prices = new Map(
    Object.entries(priceList?.models ?? {}).map(([model, one]) => [
      model,
      { ...one, cachedInput: one.cachedInput ?? one.input },
    ]),
  );
  return { keys, tenants, prices, currency: priceList?.currency ?? "USD" };
}

function setOf(list: readonly string[] | null | undefined): ReadonlySet<string> | null {
  return list ? new Set(list) : null;
}

function faultOf(issue: z.core.$ZodIssue): string {
  const path = issue.path
    .map((step, index) => (typeof step === "number" ? `[${step}]` : `${index === 0 ? "" : "."}${String(step)}`))
    .join("");
  if (issue.code === "unrecognized_keys")
    return `${path === "" ? "the file" : path} has fields nobody knows: ${issue.keys.join(", ")}`;
  const said = issue.message.startsWith("must") ? issue.message : "is missing or of a wrong type";
  return `${path === "" ? "the file" : path} ${said}`;
}
