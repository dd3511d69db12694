import { spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL("../../.margay/bin", import.meta.url));
/** Debian's package that carries both programs. */
const PACKAGE = "prometheus";
const PROGRAMS = ["prometheus", "promtool"] as const;

/** Path of a program: the machine's own, else one fetched and kept when it is first asked for; or why there is none. */
export function prometheusTool(
  program: (typeof PROGRAMS)[number],
): { readonly path: string } | { readonly lack: string } {
  const installed = (process.env.PATH ?? "").split(":").map((place) => join(place, program));
  const path = [...installed, join(folder, program)].find((candidate) => existsSync(candidate));
  if (path !== undefined) return { path };
  const lack = fetchPackage();
  const fetched = join(folder, program);
  return existsSync(fetched) ? { path: fetched } : { lack: `there is no ${program}: ${lack}` };
}

/** Unpacked without installing, moved into place whole. undefined, or why not. */
function fetchPackage(): string | undefined {
  mkdirSync(folder, { recursive: true });
  const scratch = mkdtempSync(join(folder, "prometheus-"));
  const run = (program: string, args: readonly string[]) => {
    const done = spawnSync(program, [...args], { cwd: scratch, encoding: "utf8", timeout: 3 * 60_000 });
    return done.status === 0 ? undefined : `${program}: ${done.error?.message ?? done.stderr.trim()}`;
  };
  try {
    const failed = run("apt-get", ["download", PACKAGE]) ?? run("sh", ["-c", "dpkg-deb -x prometheus_*.deb unpacked"]);
    if (failed !== undefined) return failed;
    for (const program of PROGRAMS) {
      const draft = join(scratch, program);
      copyFileSync(join(scratch, "unpacked", "usr", "bin", program), draft);
      chmodSync(draft, 0o755);
      renameSync(draft, join(folder, program));
    }
    return undefined;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}
