import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { type AddressInfo, connect, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { KubeApi } from "../../control-plane/kube/kube-api.ts";
import { connectKube } from "../../control-plane/kube/kube-client.ts";
import { systemClock } from "../../control-plane/service/clock.ts";
import { natsBinary } from "../support/nats-server.ts";
import { deadline } from "../support/system.ts";
import { clusterProgram, NAMESPACES } from "./cluster-program.ts";
import type { Image } from "./world/container.ts";
import type { WorldCommand, WorldNews, WorldSetup } from "./world/main.ts";
import { API_HOST, type PartName } from "./world/parts.ts";
import { NODE_IP } from "./world/pod-network.ts";

const repository = fileURLToPath(new URL("../..", import.meta.url));
const START_MS = 120_000;
/** The cluster's own network: the addresses of Services are local there, and those of pods are behind a wire each. */
const ENTER = `
set -e
ip link set lo up
ip addr add ${NODE_IP}/32 dev lo
ip route add local 10.96.0.0/16 dev lo
echo 1 > /proc/sys/net/ipv4/ip_forward
mkdir -p /run/netns
mount -t tmpfs none /run/netns
exec "$0" "$@"
`;

/** Of a world for which nothing else is said. */
export const NODES: readonly string[] = ["node-a", "node-b"];

/** A real Kubernetes control plane with nodes that run pods as processes of this machine. */
export class KubeWorld implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly folder: string;
  readonly #servers: Server[] = [];
  #kubeconfig = "";
  /** What the nodes complained of last. */
  #said = "";
  #api: KubeApi | null = null;

  private constructor(child: ChildProcess, folder: string) {
    this.#child = child;
    this.folder = folder;
    child.stderr?.on("data", (bytes: Buffer) => {
      this.#said = (this.#said + bytes.toString()).slice(-4_000);
    });
  }

  static async start(nodes: readonly string[] = NODES): Promise<KubeWorld> {
    const program = await clusterProgram();
    const folder = await mkdtemp(join(tmpdir(), "margay-kube-"));
    const main = fileURLToPath(new URL("world/main.ts", import.meta.url));
    const argv = ["--pdeathsig", "KILL", "unshare", ...NAMESPACES, "sh", "-c", ENTER, process.execPath, main];
    const child = spawn("setpriv", argv, { stdio: ["ignore", "ignore", "pipe", "ipc"] });
    const world = new KubeWorld(child, folder);
    try {
      const news = world.#next();
      child.send({ program, folder, images: images(), nodes } satisfies WorldSetup);
      const ready = await deadline(news, START_MS, () => `the cluster did not start\n${world.#said}`);
      if (ready.kind !== "ready")
        throw new Error(`the cluster did not start: ${JSON.stringify(ready)}\n${world.#said}`);
      const url = (await world.open(API_HOST, 443)).replace("http:", "https:");
      world.#kubeconfig = ready.kubeconfig.replace("https://GATE", url);
      world.#api = connectKube(world.#kubeconfig, systemClock).api;
      return world;
    } catch (error) {
      await world[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** As the cluster's administrator. */
  get api(): KubeApi {
    return this.#api!;
  }

  /** For programs of this machine: kubectl, helm. */
  get kubeconfig(): string {
    return this.#kubeconfig;
  }

  /** The address on this machine behind which `host:port` of the cluster is, as a URL without a slash at its end. */
  async open(host: string, port: number): Promise<string> {
    const server = createServer((client) => {
      const gate = connect(join(this.folder, "gate"));
      gate.write(`${host} ${port}\n`);
      client.pipe(gate);
      gate.pipe(client);
      for (const [one, other] of [
        [client, gate],
        [gate, client],
      ] as const) {
        one.on("error", () => other.destroy());
        one.once("close", () => other.destroy());
      }
    });
    this.#servers.push(server);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  /** Ends a part of the cluster's control plane at once, or starts the API server again. */
  async command(kind: "stop" | "start", part: PartName): Promise<void> {
    const news = this.#next();
    this.#child.send({ kind, part } satisfies WorldCommand);
    const done = await deadline(news, START_MS, () => `the cluster did not ${kind} ${part}`);
    if (done.kind !== "done") throw new Error(`${kind} ${part}: ${JSON.stringify(done)}`);
  }

  /** What the containers of the pods whose names match have written, for messages of failed tests. */
  async logs(pattern: RegExp): Promise<string> {
    const found: string[] = [this.#said];
    for (const node of await readdir(this.folder)) {
      if (!node.startsWith("node-")) continue;
      for (const pod of await readdir(join(this.folder, node))) {
        if (!pattern.test(pod)) continue;
        for (const container of await readdir(join(this.folder, node, pod))) {
          const text = await readFile(join(this.folder, node, pod, container, "log"), "utf8").catch(() => "");
          if (text !== "") found.push(`--- ${pod} ${container}\n${excerpt(text)}`);
        }
      }
    }
    return found.join("\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers) server.close();
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      const gone = new Promise((resolve) => this.#child.once("exit", resolve));
      // The first process of its namespaces: the others end with it.
      this.#child.kill("SIGKILL");
      await gone;
    }
    await rm(this.folder, { recursive: true, force: true, maxRetries: 5 });
  }

  #next(): Promise<WorldNews> {
    return new Promise((resolve, reject) => {
      const onExit = (): void => reject(new Error("the cluster has ended"));
      this.#child.once("exit", onExit);
      this.#child.once("message", (news) => {
        this.#child.off("exit", onExit);
        resolve(news as WorldNews);
      });
    });
  }
}

/** The beginning and the end, for between them much repeats itself. */
function excerpt(text: string): string {
  const printable = text.replace(/[^\x20-\x7e\n]/g, ".");
  return printable.length < 6_000 ? printable : `${printable.slice(0, 2_500)}\n...\n${printable.slice(-3_500)}`;
}

/** What stands for the images that the chart names. */
function images(): readonly Image[] {
  return [
    {
      name: "nats",
      entrypoint: ["nats-server"],
      command: [],
      workingDir: "/",
      binds: { "/usr/local/bin/nats-server": natsBinary() },
    },
    {
      name: "margay",
      entrypoint: ["node"],
      command: [],
      workingDir: "/margay",
      binds: {
        "/margay": repository,
        "/usr/local/bin/node": process.execPath,
        "/usr/local/bin/nats-server": natsBinary(),
      },
    },
  ];
}
