import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
// @ts-expect-error: a script without types
import * as dependencies from "../../.ci/dependencies.mjs";

const { isAllowed, productionPackages, severeFaults } = dependencies as {
  isAllowed: (licence: string) => boolean;
  productionPackages: (lock: object) => readonly { readonly name: string; readonly licence: string }[];
  severeFaults: (printed: string) => readonly string[] | null;
};

test("every production dependency is under a licence that may be used", () => {
  const lock = JSON.parse(readFileSync(new URL("../../package-lock.json", import.meta.url), "utf8")) as object;
  const packages = productionPackages(lock);
  expect(packages.map(({ name }) => name.replace(/@[^@]+$/, ""))).toContain("fastify");
  expect(packages.filter(({ licence }) => !isAllowed(licence))).toEqual([]);
});

test("development dependencies are left out, nested ones are named by their own name", () => {
  const packages = productionPackages({
    packages: {
      "": { license: "GPL-3.0" },
      "node_modules/a": { version: "1.0.0", license: "MIT" },
      "node_modules/a/node_modules/@x/b": { version: "2.0.0" },
      "node_modules/c": { version: "3.0.0", license: "GPL-3.0", dev: true },
    },
  });
  expect(packages.filter(({ name }) => !name.startsWith("nats"))).toEqual([
    { name: "@x/b@2.0.0", licence: "unknown" },
    { name: "a@1.0.0", licence: "MIT" },
  ]);
});

test.each([
  ["MIT", true],
  ["(GPL-3.0-only OR MIT)", true],
  ["MIT AND Apache-2.0", true],
  ["MIT AND GPL-3.0-only", false],
  ["GPL-3.0-only", false],
  ["unknown", false],
])("licence %s: %s", (licence, allowed) => {
  expect(isAllowed(licence)).toBe(allowed);
});

test("faults of high severity are named; a registry without an answer is no fault", () => {
  const report = (severity: string) => JSON.stringify({ vulnerabilities: { x: { name: "x", severity } } });
  expect(severeFaults(report("critical"))).toEqual(["x (critical)"]);
  expect(severeFaults(report("high"))).toEqual(["x (high)"]);
  expect(severeFaults(report("moderate"))).toEqual([]);
  expect(severeFaults(JSON.stringify({ message: "405 Method Not Allowed", statusCode: 405 }))).toBeNull();
  expect(severeFaults("")).toBeNull();
});
