import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir, mkdtemp, open, rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

/** Of k8s.io/kubernetes in cluster/go.mod. */
export const KUBERNETES_VERSION = "v1.37.2";

const source = fileURLToPath(new URL("cluster", import.meta.url));
/** Other flags would compile all of it anew. */
const FLAGS = ["-trimpath", "-buildvcs=false", "-ldflags"];
const LINKED = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"]
  .map((name) => `-X ${name}.gitVersion=${KUBERNETES_VERSION}`)
  .join(" ");
const BUILD_MS = 40 * 60_000;
const DOWNLOAD_MS = 10 * 60_000;

/** Where the program is kept from one checkout to the next. */
function cacheFolder(): string {
  return join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "margay");
}

/** Named after what it is made of. */
function programPath(): string {
  const digest = createHash("sha256");
  for (const name of ["go.mod", "go.sum", "main.go"]) digest.update(readFileSync(join(source, name)));
  const key = digest.update(FLAGS.join(" ")).update(LINKED).digest("hex").slice(0, 16);
  return join(cacheFolder(), `kube-cluster-${key}`);
}

/** Why there can be no cluster here, in one sentence; null: there can be one. */
export function whyNoCluster(): string | null {
  if (process.platform !== "linux") return "the test cluster runs on Linux only";
  for (const program of ["unshare", "nsenter", "ip", "mount", "setpriv", "chroot"]) {
    if (spawnSync("sh", ["-c", `command -v ${program}`]).status !== 0) return `there is no ${program} here`;
  }
  if (!existsSync(programPath())) {
    if (spawnSync("go", ["version"]).status !== 0) return "there is no Go here to build the API server with";
    const fetched = spawnSync("go", ["mod", "download"], { cwd: source, timeout: DOWNLOAD_MS });
    if (fetched.status !== 0) return "the Go modules of the API server can't be had here";
  }
  const tried = spawnSync("unshare", [...NAMESPACES, "sh", "-c", TRY]);
  return tried.status === 0 ? null : "namespaces, virtual wires or overlay mounts are not allowed here (it needs root)";
}

/** What the nodes do for every pod: a wire, and a root that is copied on write. */
const TRY = `
set -e
ip link add probe0 type veth peer name probe1
echo 1 > /proc/sys/net/ipv4/ip_forward
mount -t tmpfs none /mnt
mkdir /mnt/up /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work /mnt/root
`;

/** Its own network, mounts and processes: nothing of it is seen outside, and all of it ends with its first process. */
export const NAMESPACES = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"] as const;

/**
 * The program with API server, controller manager, scheduler and etcd in it: from the cache, else built, which takes
 * minutes of two cores the first time. Whoever comes while it is built waits for it. Throws with the compiler's last words.
 */
export async function clusterProgram(): Promise<string> {
  const path = programPath();
  if (existsSync(path)) return path;
  await mkdir(cacheFolder(), { recursive: true });
  const lock = `${path}.lock`;
  const end = performance.now() + BUILD_MS;
  while (!existsSync(path)) {
    const mine = await open(lock, "wx").catch(() => null);
    if (mine === null) {
      if (ownerIsGone(lock)) await rm(lock, { force: true });
      if (performance.now() > end) throw new Error(`waited in vain for whoever builds ${path}`);
      await sleep(500);
      continue;
    }
    try {
      await mine.writeFile(String(process.pid));
      await build(path);
    } finally {
      await mine.close();
      await rm(lock, { force: true });
    }
  }
  return path;
}

function ownerIsGone(lock: string): boolean {
  try {
    const pid = Number(readFileSync(lock, "utf8"));
    return pid > 0 && !existsSync(`/proc/${pid}`);
  } catch {
    return false;
  }
}

async function build(path: string): Promise<void> {
  process.stderr.write("building a Kubernetes control plane for the tests: some minutes, once ...\n");
  const scratch = await mkdtemp(`${path}.`);
  try {
    const argv = ["-n", "10", "go", "build", ...FLAGS, `-s -w ${LINKED}`, "-o", join(scratch, "program"), "."];
    const child = spawn("nice", argv, {
      cwd: source,
      env: { ...process.env, CGO_ENABLED: "0", GOFLAGS: "-mod=readonly" },
      stdio: ["ignore", "ignore", "pipe"],
      timeout: BUILD_MS,
    });
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => (said = (said + text).slice(-2_000)));
    const code = await new Promise((resolve, reject) => child.once("error", reject).once("exit", resolve));
    if (code !== 0) throw new Error(`the Kubernetes control plane could not be built:\n${said}`);
    await rename(join(scratch, "program"), path);
    // Those of earlier sources are of no use to anybody.
    for (const old of readdirSync(cacheFolder())) {
      if (/^kube-cluster-[0-9a-f]{16}$/.test(old) && !path.endsWith(old))
        await rm(join(cacheFolder(), old), { force: true });
    }
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}
