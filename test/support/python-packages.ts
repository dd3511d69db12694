import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL("../../.margay/python/", import.meta.url));

/** A Python that finds one exact package from PyPI with all it needs. */
export interface PythonWithPackage {
  readonly python: string;
  readonly env: Readonly<Record<string, string>>;
}

/** Fetched when it is first asked for, into a folder of its own, and kept; or why there is none. */
export function pythonPackage(name: string, version: string): PythonWithPackage | { readonly lack: string } {
  const asked = spawnSync("python3", ["-c", "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"], {
    encoding: "utf8",
  });
  if (asked.status !== 0) return { lack: "there is no python3" };
  const [release, python] = asked.stdout.trim().split(" ") as [string, string];
  const home = join(folder, `${release}-${name}-${version}`);
  const found = { python, env: { PATH: process.env.PATH ?? "", PYTHONPATH: home } };
  if (existsSync(home)) return found;
  mkdirSync(folder, { recursive: true });
  const draft = mkdtempSync(join(folder, "draft-"));
  try {
    const argv = ["-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", "--target", draft];
    const done = spawnSync(python, [...argv, `${name}==${version}`], { encoding: "utf8", timeout: 5 * 60_000 });
    if (done.status !== 0) return { lack: `pip: ${done.error?.message ?? done.stderr.trim().split("\n").at(-1)}` };
    // Whole or not at all; who comes second keeps the first one's.
    if (!existsSync(home)) renameSync(draft, home);
    return found;
  } finally {
    rmSync(draft, { recursive: true, force: true });
  }
}
