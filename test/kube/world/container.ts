import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream, mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Container, SecurityContext } from "./objects.ts";
import { expand } from "./pod-files.ts";

/** What stands for a container image: the machine's own files, with programs put where the image has them. */
export interface Image {
  /** Found by this part of the image's name. */
  readonly name: string;
  readonly entrypoint: readonly string[];
  readonly command: readonly string[];
  readonly workingDir: string;
  /** Path in the container: path on this machine. */
  readonly binds: Readonly<Record<string, string>>;
}

export interface ContainerRun {
  readonly container: Container;
  readonly image: Image | null;
  readonly environment: Readonly<Record<string, string>>;
  readonly volumes: ReadonlyMap<string, string>;
  readonly hostsFile: string;
  /** Its pod's network. */
  readonly networkPath: string;
  /** Scratch and log of this container. */
  readonly folder: string;
  readonly security: SecurityContext;
}

export interface Ended {
  readonly exitCode: number;
  /** Last lines of the log. */
  readonly tail: string;
}

/**
 * Runs in new mounts: $1 scratch folder, $2 "ro" or "rw", $3 user:group or "", $4 working folder, then pairs of SOURCE
 * TARGET up to "--", then the command. The root of the machine is copied on write, so that nothing a container writes
 * outside its volumes outlives it.
 */
const SCRIPT = `
set -eu
scratch=$1 mode=$2 user=$3 folder=$4; shift 4
mount -t tmpfs none "$scratch"
mkdir "$scratch/up" "$scratch/work" "$scratch/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/up,workdir=$scratch/work" "$scratch/root"
root=$scratch/root
for name in dev proc sys; do mount --rbind "/$name" "$root/$name"; done
while [ "$1" != -- ]; do
  # Links on the way, such as /var/run, lead to places in the container and not in this machine.
  target=$root$(chroot "$root" readlink -m "$2")
  if [ -d "$1" ]; then mkdir -p "$target"; else mkdir -p "$(dirname "$target")"; [ -e "$target" ] || : > "$target"; fi
  mount --bind "$1" "$target"
  shift 2
done
shift
mkdir -p "$root$folder"
[ "$mode" = rw ] || mount -o remount,ro "$root"
exec chroot \${user:+--userspec="$user"} "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
`;

const TAIL_BYTES = 2_048;

/** One process tree in its own view of the file system. */
export class RunningContainer {
  readonly #child: ChildProcess;
  readonly ended: Promise<Ended>;

  constructor(run: ContainerRun) {
    const { container, image, environment, volumes, hostsFile, networkPath, folder, security } = run;
    const scratch = join(folder, "scratch");
    mkdirSync(scratch, { recursive: true });
    const binds = Object.entries(image?.binds ?? {}).flatMap(([target, source]) => [source, target]);
    const mounts = (container.volumeMounts ?? []).flatMap(({ name, mountPath, subPath }) => {
      const source = volumes.get(name);
      if (source === undefined) throw new Error(`there is no volume ${name}`);
      return [subPath === undefined ? source : join(source, subPath), mountPath];
    });
    const entrypoint = container.command ?? image?.entrypoint ?? [];
    const given = container.args ?? (container.command === undefined ? (image?.command ?? []) : []);
    const command = [...entrypoint, ...given].map((word) => expand(word, environment));
    if (command.length === 0) throw new Error(`the container ${container.name} has no command`);
    const { runAsUser, runAsGroup, readOnlyRootFilesystem } = security;
    const user = runAsUser === undefined ? "" : `${runAsUser}:${runAsGroup ?? runAsUser}`;
    const argv = [
      ...["--mount", "sh", "-c", SCRIPT, "container", scratch, readOnlyRootFilesystem === true ? "ro" : "rw", user],
      container.workingDir ?? image?.workingDir ?? "/",
      ...[hostsFile, "/etc/hosts", ...binds, ...mounts, "--", ...command],
    ];
    const child = spawn("nsenter", [`--net=${networkPath}`, "unshare", ...argv], {
      env: { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", HOME: "/root", ...environment },
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    this.#child = child;
    const log = createWriteStream(join(folder, "log"), { flags: "a" });
    let tail = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.on("data", (bytes: Buffer) => {
        log.write(bytes);
        tail = (tail + bytes.toString()).slice(-TAIL_BYTES);
      });
    }
    this.ended = new Promise((resolve) => {
      child.once("close", (code, signal) => {
        log.end();
        resolve({ exitCode: code ?? 128 + (signal === "SIGKILL" ? 9 : 15), tail });
      });
    });
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** Asks the first process; `SIGKILL` reaches all of them. */
  signal(signal: "SIGTERM" | "SIGKILL"): void {
    try {
      process.kill(signal === "SIGKILL" ? -this.pid : this.pid, signal);
    } catch {
      // It has ended.
    }
  }

  /** Runs a command beside it, in its mounts. Resolves with whether it succeeded in time. */
  exec(command: readonly string[], timeoutMs: number): Promise<boolean> {
    return new Promise((resolve) => {
      const argv = ["--net", "--mount", "--root", "--wd", "--target", String(this.pid), "--", ...command];
      const child = spawn("nsenter", argv, { stdio: "ignore", timeout: timeoutMs, killSignal: "SIGKILL" });
      child.once("error", () => resolve(false));
      child.once("exit", (code) => resolve(code === 0));
    });
  }
}
