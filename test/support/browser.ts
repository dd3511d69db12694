import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { type Browser, launch, type Page } from "puppeteer-core";

const PROGRAMS = ["chromium", "chromium-browser", "google-chrome"] as const;
const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

/** Path of a Chromium: the machine's own, else Debian's, installed when it is first asked for; or why there is none. */
export function chromium(): { readonly path: string } | { readonly lack: string } {
  const path = installed();
  if (path !== undefined) return { path };
  if (process.getuid?.() !== 0) return { lack: "there is no chromium, and installing it needs root" };
  const argv = ["install", "-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", "chromium"];
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const done = spawnSync("apt-get", argv, { encoding: "utf8", timeout: 4 * 60_000, env });
  const after = installed();
  if (after !== undefined) return { path: after };
  const why = done.error?.message ?? done.stderr.trim().split("\n").at(-1);
  return { lack: `there is no chromium: ${why}` };
}

function installed(): string | undefined {
  const places = (process.env.PATH ?? "").split(":");
  return PROGRAMS.flatMap((name) => places.map((place) => join(place, name))).find((path) => existsSync(path));
}

export function startBrowser(executablePath: string): Promise<Browser> {
  return launch({
    executablePath,
    headless: true,
    timeout: 60_000,
    protocolTimeout: 120_000,
    // Containers: no user namespaces for the browser's own sandbox, little shared memory. It opens our own pages alone.
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--force-color-profile=srgb", "--lang=en-GB"],
  });
}

/** What axe finds wrong with a page and calls serious or worse, in words. */
export async function seriousFaults(page: Page): Promise<readonly string[]> {
  const { violations } = (await page.evaluate(
    `${readFileSync(AXE, "utf8")}; axe.run(document, { resultTypes: ["violations"] })`,
  )) as AxeResult;
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html).join(" ")}`);
}

interface AxeResult {
  readonly violations: readonly {
    readonly id: string;
    readonly help: string;
    readonly impact: string;
    readonly nodes: readonly { readonly html: string }[];
  }[];
}
