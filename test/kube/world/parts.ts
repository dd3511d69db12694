import { type ChildProcess, spawn } from "node:child_process";
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { KubeApi } from "../../../control-plane/kube/kube-api.ts";
import { connectKube } from "../../../control-plane/kube/kube-client.ts";
import { systemClock } from "../../../control-plane/service/clock.ts";

/** First address of the services' range: that of the API server. */
export const API_HOST = "10.96.0.1";
export const API_URL = `https://${API_HOST}`;
const START_MS = 60_000;

export type PartName = "etcd" | "kube-apiserver" | "kube-controller-manager" | "kube-scheduler";

/** The four programs of a Kubernetes control plane, each of which can be stopped and started again. */
export class ClusterParts {
  readonly #program: string;
  readonly #folder: string;
  readonly #running = new Map<PartName, ChildProcess>();
  readonly token = randomBytes(16).toString("hex");
  readonly api: KubeApi;

  constructor(program: string, folder: string) {
    this.#program = program;
    this.#folder = folder;
    mkdirSync(join(folder, "tls"), { recursive: true });
    writeFileSync(join(folder, "tokens.csv"), `${this.token},admin,admin,system:masters\n`);
    const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    writeFileSync(join(folder, "accounts.key"), privateKey.export({ type: "sec1", format: "pem" }));
    writeFileSync(join(folder, "kubeconfig"), this.kubeconfig(API_URL));
    this.api = connectKube(this.kubeconfig(API_URL), systemClock).api;
  }

  /** Certificate of the API server's own authority. There once it has run. */
  get authority(): string {
    return readFileSync(join(this.#folder, "tls", "apiserver.crt"), "utf8");
  }

  /** For a client that reaches the API server under `url`. */
  kubeconfig(url: string): string {
    return JSON.stringify({
      apiVersion: "v1",
      kind: "Config",
      clusters: [{ name: "test", cluster: { server: url, "insecure-skip-tls-verify": true } }],
      users: [{ name: "admin", user: { token: this.token } }],
      contexts: [{ name: "test", context: { cluster: "test", user: "admin", namespace: "default" } }],
      "current-context": "test",
    });
  }

  async startAll(): Promise<void> {
    this.#spawn("etcd");
    await this.startApi();
    this.#spawn("kube-controller-manager");
    this.#spawn("kube-scheduler");
  }

  /** Starts the API server and waits until it takes requests. */
  async startApi(): Promise<void> {
    this.#spawn("kube-apiserver");
    const end = performance.now() + START_MS;
    for (;;) {
      const ready = await this.api.call({ method: "GET", path: "/api/v1/namespaces/kube-system" }).then(
        () => true,
        () => false,
      );
      if (ready) return;
      if (performance.now() > end) throw new Error(`the API server did not start:\n${this.log("kube-apiserver")}`);
      await sleep(50);
    }
  }

  /** Ends one part at once. */
  async stop(name: PartName): Promise<void> {
    const child = this.#running.get(name);
    if (child === undefined) return;
    this.#running.delete(name);
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGKILL");
    await gone;
  }

  log(name: PartName): string {
    return readFileSync(join(this.#folder, `${name}.log`), "utf8").slice(-4_000);
  }

  #spawn(name: PartName): void {
    const log = openSync(join(this.#folder, `${name}.log`), "a");
    const child = spawn(this.#program, [name, ...this.#arguments(name)], { stdio: ["ignore", log, log] });
    this.#running.set(name, child);
  }

  #arguments(name: PartName): readonly string[] {
    const at = (file: string): string => join(this.#folder, file);
    const client = [`--kubeconfig=${at("kubeconfig")}`, "--leader-elect=false", "--secure-port=0"];
    switch (name) {
      case "etcd":
        return [`--data-dir=${at("etcd")}`, "--unsafe-no-fsync", "--log-level=warn"];
      case "kube-apiserver":
        return [
          "--etcd-servers=http://127.0.0.1:2379",
          `--cert-dir=${at("tls")}`,
          `--bind-address=${API_HOST}`,
          "--secure-port=443",
          "--service-cluster-ip-range=10.96.0.0/16",
          "--endpoint-reconciler-type=none",
          `--token-auth-file=${at("tokens.csv")}`,
          "--authorization-mode=Node,RBAC",
          `--service-account-issuer=${API_URL}`,
          `--service-account-key-file=${at("accounts.key")}`,
          `--service-account-signing-key-file=${at("accounts.key")}`,
          "--disable-admission-plugins=TaintNodesByCondition",
        ];
      case "kube-controller-manager":
        return [
          ...client,
          "--use-service-account-credentials=false",
          `--service-account-private-key-file=${at("accounts.key")}`,
          `--root-ca-file=${at("tls/apiserver.crt")}`,
          "--kube-api-qps=200",
          "--kube-api-burst=400",
        ];
      case "kube-scheduler":
        return [...client, "--kube-api-qps=200", "--kube-api-burst=400"];
    }
  }
}
