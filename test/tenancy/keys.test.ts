import { rm } from "node:fs/promises";
import { describe, expect, test } from "vitest";
import { systemRandom } from "#service/clock.ts";
import { createMetrics } from "#service/metrics.ts";
import { keyDigest, newApiKey } from "../../control-plane/tenancy/api-key.ts";
import { ANYBODY, urgencyOf } from "../../control-plane/tenancy/caller.ts";
import { parseKeyFile } from "../../control-plane/tenancy/key-file.ts";
import { Keyring } from "../../control-plane/tenancy/keyring.ts";
import { decimalOf, microsOf, roundedMicros } from "../../control-plane/tenancy/money.ts";
import { FakeClock } from "../support/fake-clock.ts";
import { KeysFile, keyFor, tenancyOf } from "../support/keys-file.ts";
import { runCli } from "../support/system.ts";

function faults(content: unknown): readonly string[] {
  try {
    parseKeyFile(typeof content === "string" ? content : JSON.stringify(content));
    return [];
  } catch (error) {
    return (error as Error).message.split("\n");
  }
}

describe("a keys file", () => {
  test("says who a key belongs to and what it may; what is left out is not limited", () => {
    const { key, line } = keyFor("acme", { models: ["nano"], admin: true, expires: "2030-01-01T00:00:00Z" });
    const set = parseKeyFile(
      JSON.stringify({
        tenants: { acme: { weight: 2, priority: "high", limits: { requestsPerMinute: 60, monthlyBudget: "12.50" } } },
        keys: [line],
        prices: { currency: "EUR", models: { nano: { input: "0.70", output: "2.8" } } },
      }),
    );
    const found = set.keys.get(keyDigest(key)!);
    expect(found).toMatchObject({ admin: true, expiresMs: Date.UTC(2030, 0), models: new Set(["nano"]) });
    expect(found?.tenant).toMatchObject({ name: "acme", weight: 2, priority: "high", models: null });
    expect(found?.tenant.limits).toEqual({
      ...{ requestsPerMinute: 60, inputTokensPerMinute: null, outputTokensPerMinute: null, tokensPerMinute: null },
      ...{ concurrency: null, monthlyBudget: 12_500_000 },
    });
    expect(set.prices.get("nano")).toMatchObject({ input: 700_000, cachedInput: 700_000, output: 2_800_000 });
    expect(set.currency).toBe("EUR");
  });

  test("is refused with the field's name, and never quotes a value", () => {
    const { line } = keyFor("acme");
    const good = { tenants: { acme: {} }, keys: [line] };
    expect(faults(good)).toEqual([]);
    expect(faults("{")).toEqual(["the file is not valid JSON"]);
    expect(faults([])).toEqual(["the file is missing or of a wrong type"]);
    expect(faults({ ...good, secrets: 1 })).toEqual(["the file has fields nobody knows: secrets"]);
    expect(faults({ tenants: {} })).toEqual(["keys must be a list of keys"]);
    expect(faults({ ...good, keys: [{ ...line, sha256: "hunter2" }] })).toEqual([
      "keys[0].sha256 must be 64 hexadecimal digits, as `margay keys create` prints them",
    ]);
    expect(faults({ ...good, keys: [line, line] })).toEqual([
      "keys[1].name stands twice",
      "keys[1].sha256 stands twice",
    ]);
    expect(faults({ ...good, keys: [{ ...line, tenant: "other" }] })).toEqual([
      "keys[0].tenant is not one of the file's tenants",
    ]);
    for (const [limits, fault] of [
      [{ requestsPerMinute: 0 }, "requestsPerMinute must be at least 1"],
      [{ concurrency: 1.5 }, "concurrency must be a whole number"],
      [{ monthlyBudget: 10 }, 'monthlyBudget must be an amount in quotes, for example "12.50"'],
      [{ monthlyBudget: "1.2345678" }, "monthlyBudget must be digits with at most six decimal places"],
      [{ monthlyBudget: "10" }, "monthlyBudget needs prices, and the file has none"],
    ] as const) {
      expect(faults({ ...good, tenants: { acme: { limits } } })).toEqual([`tenants.acme.limits.${fault}`]);
    }
    expect(faults({ ...good, tenants: { acme: { wieght: 2 } } })).toEqual([
      "tenants.acme has fields nobody knows: wieght",
    ]);
  });

  test("that changes holds without a restart; one that breaks leaves the keys before it, and says so", async () => {
    const [first, second] = [keyFor("acme"), keyFor("acme")];
    await using file = await KeysFile.with({ tenants: { acme: {} }, keys: [first.line] });
    const metrics = createMetrics({ processMetrics: false });
    const keyring = await file.open({ metrics });
    let changes = 0;
    keyring.onChange(() => changes++);
    const known = () => [first.key, second.key].map((key) => keyring.find(key) !== null);
    expect(known()).toEqual([true, false]);
    await file.write({ tenants: { acme: {} }, keys: [first.line, second.line] });
    await keyring.look();
    expect([known(), changes]).toEqual([[true, true], 1]);
    await file.write("{ broken");
    await keyring.look();
    await rm(file.path);
    await keyring.look();
    expect([known(), changes]).toEqual([[true, true], 1]);
    expect(await metrics.text()).toContain("margay_keys_file_valid 0");
    await file.write({ tenants: { acme: {} }, keys: [second.line] });
    await keyring.look();
    expect([known(), changes]).toEqual([[false, true], 2]);
    expect(await metrics.text()).toContain("margay_keys_file_valid 1");
    expect(await metrics.text()).toContain('margay_keys_file_reloads_total{outcome="failed"} 2');
  });

  test("that cannot be read is an error with its path and why", async () => {
    const parts = {
      path: "/nowhere/keys.json",
      clock: new FakeClock(),
      metrics: createMetrics({ processMetrics: false }),
    };
    const { silentLogger: logger } = await import("#service/logger.ts");
    await expect(Keyring.open({ ...parts, logger })).rejects.toThrow(
      "MARGAY_KEYS_FILE=/nowhere/keys.json: the file cannot be read (ENOENT)",
    );
  });
});

describe("a key", () => {
  test("is 256 random bits of which the digest alone is kept", () => {
    const key = newApiKey(systemRandom);
    expect(key).toMatch(/^mgy-[0-9a-f]{64}$/);
    expect(newApiKey(systemRandom)).not.toBe(key);
    expect(keyDigest(key)).toMatch(/^[0-9a-f]{64}$/);
    expect(keyDigest("x".repeat(100_000))).toBeNull();
  });

  test("whose time is over is not known any more", async () => {
    const { key, line } = keyFor("acme", { expires: "2026-01-01T00:00:00Z" });
    await using file = await KeysFile.with({ tenants: { acme: {} }, keys: [line] });
    const tenancy = await tenancyOf(file);
    expect(() => tenancy.identify(key)).toThrow(expect.objectContaining({ code: "invalid_api_key", status: 401 }));
    expect(() => tenancy.identify(null)).toThrow(expect.objectContaining({ code: "invalid_api_key" }));
  });

  test("is made by the command line: the key on stdout, the line for the file on stderr", async () => {
    const { code, stdout, stderr } = await runCli(["keys", "create", "--tenant", "acme", "--name", "ci"], {});
    expect(code).toBe(0);
    const key = stdout.trim();
    const line = JSON.parse(stderr.trim().split("\n").at(-1)!) as object;
    expect(line).toEqual({ name: "ci", tenant: "acme", sha256: keyDigest(key) });
    expect(parseKeyFile(JSON.stringify({ tenants: { acme: {} }, keys: [line] })).keys.size).toBe(1);
    expect((await runCli(["keys", "create"], {})).code).toBe(2);
  });
});

test("a service tier asks for a class that its tenant may have", () => {
  const of = (priority: "high" | "normal" | "low") => {
    const caller = { ...ANYBODY, tenant: { ...ANYBODY.tenant, priority } };
    return [null, "default", "priority", "flex"].map((tier) => urgencyOf(caller, tier));
  };
  expect([of("high"), of("normal"), of("low")]).toEqual([
    [0, 0, 1, -1],
    [0, 0, 0, -1],
    [-1, -1, -1, -1],
  ]);
});

test("money is exact: prices in micro-units, sums in pico-units", () => {
  expect([microsOf("2.80"), microsOf("0.000001"), microsOf("999999999")]).toEqual([2_800_000, 1, 999_999_999_000_000]);
  const perToken = BigInt(microsOf("0.07"));
  expect(decimalOf(3n * perToken)).toBe("0.000000210000");
  let sum = 0n;
  for (let i = 0; i < 1_000_000; i++) sum += perToken;
  expect(decimalOf(sum)).toBe("0.070000000000");
  expect([roundedMicros(499_999n), roundedMicros(500_000n)]).toEqual([0, 1]);
});
