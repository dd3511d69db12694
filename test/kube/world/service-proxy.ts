import { readFileSync, writeFileSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { z } from "zod";
import type { KubeApi } from "../../../control-plane/kube/kube-api.ts";
import { WatchedList } from "../../../control-plane/kube/watched-list.ts";
import { systemClock, systemRandom } from "../../../control-plane/service/clock.ts";
import { silentLogger } from "../../../control-plane/service/logger.ts";
import type { EndpointSlice, Service } from "./objects.ts";

/**
 * Stands for kube-proxy and the cluster's name server: listens on the address and ports of every Service, joins each
 * connection with a ready endpoint of it, and keeps a file of host names per namespace.
 */
export class ServiceProxy {
  readonly #services: WatchedList<Service>;
  readonly #slices: WatchedList<EndpointSlice>;
  readonly #folder: string;
  readonly #listening = new Map<string, Server>();
  readonly #namespaces = new Set<string>();
  #turn = 0;

  constructor(api: KubeApi, folder: string) {
    this.#folder = folder;
    const common = { api, clock: systemClock, random: systemRandom, logger: silentLogger };
    this.#services = new WatchedList<Service>({
      ...common,
      path: "/api/v1/services",
      item: z.custom<Service>(),
      onChange: () => this.#look(),
    });
    this.#slices = new WatchedList<EndpointSlice>({
      ...common,
      path: "/apis/discovery.k8s.io/v1/endpointslices",
      item: z.custom<EndpointSlice>(),
      onChange: () => this.#writeNames(),
    });
  }

  start(): void {
    this.#services.start();
    this.#slices.start();
  }

  /** The file of host names for pods of a namespace; kept current in place, for it is mounted into the pods. */
  hostsFile(namespace: string): string {
    const path = join(this.#folder, `hosts-${namespace}`);
    if (!this.#namespaces.has(namespace)) {
      this.#namespaces.add(namespace);
      writeFileSync(path, this.#names(namespace));
    }
    return path;
  }

  #look(): void {
    const wanted = new Map<string, { readonly service: Service; readonly port: number }>();
    for (const service of this.#services.items.values()) {
      const { clusterIP, ports = [] } = service.spec;
      if (clusterIP === undefined || clusterIP === "None" || service.metadata.name === "kubernetes") continue;
      for (const { port } of ports) wanted.set(`${clusterIP}:${port}`, { service, port });
    }
    for (const [address, server] of this.#listening) {
      if (wanted.has(address)) continue;
      server.close();
      this.#listening.delete(address);
    }
    for (const [address, { service, port }] of wanted) {
      if (this.#listening.has(address)) continue;
      const { uid } = service.metadata;
      const server = createServer({ pauseOnConnect: true }, (client) => this.#join(client, uid, port));
      server.on("error", (error) => process.stderr.write(`service ${service.metadata.name}: ${error.message}\n`));
      server.listen(port, service.spec.clusterIP);
      this.#listening.set(address, server);
    }
    this.#writeNames();
  }

  /** Connects a client to one of the ready endpoints, in turn; the next one where a connection fails. */
  #join(client: Socket, uid: string, port: number): void {
    client.on("error", () => {});
    const addresses = this.#endpoints(uid, port);
    const first = this.#turn++;
    const attempt = (tried: number): void => {
      const to = addresses[(first + tried) % addresses.length];
      if (to === undefined || tried >= addresses.length) return void client.destroy();
      const server = connect(to.port, to.host);
      server.once("error", () => (joined ? client.destroy() : attempt(tried + 1)));
      let joined = false;
      server.once("connect", () => {
        joined = true;
        client.once("close", () => server.destroy());
        server.once("close", () => client.end());
        client.pipe(server);
        server.pipe(client);
      });
    };
    attempt(0);
  }

  #endpoints(uid: string, port: number): readonly { readonly host: string; readonly port: number }[] {
    const service = this.#services.items.get(uid);
    const named = service?.spec.ports?.find((one) => one.port === port)?.name ?? "";
    return this.#slicesOf(service).flatMap((slice) => {
      const target = slice.ports?.find((one) => (one.name ?? "") === named)?.port;
      if (target === undefined) return [];
      const ready = (slice.endpoints ?? []).filter(({ conditions }) => conditions?.ready !== false);
      return ready.map(({ addresses }) => ({ host: addresses[0]!, port: target }));
    });
  }

  #slicesOf(service: Service | undefined): readonly EndpointSlice[] {
    if (service === undefined) return [];
    const { name, namespace } = service.metadata;
    return [...this.#slices.items.values()].filter(
      ({ metadata }) => metadata.namespace === namespace && metadata.labels?.["kubernetes.io/service-name"] === name,
    );
  }

  #writeNames(): void {
    for (const namespace of this.#namespaces) {
      const path = join(this.#folder, `hosts-${namespace}`);
      const text = this.#names(namespace);
      // In place: a mounted file is the same file for ever.
      if (readFileSync(path, "utf8") !== text) writeFileSync(path, text);
    }
  }

  #names(from: string): string {
    const lines = ["127.0.0.1 localhost"];
    const name = (address: string, host: string, namespace: string): void => {
      const full = `${host}.${namespace}`;
      const short = namespace === from ? `${host} ` : "";
      lines.push(`${address} ${short}${full} ${full}.svc ${full}.svc.cluster.local`);
    };
    for (const service of this.#services.items.values()) {
      const { name: host, namespace } = service.metadata;
      const { clusterIP } = service.spec;
      if (clusterIP !== undefined && clusterIP !== "None") {
        name(clusterIP, host, namespace);
        continue;
      }
      for (const { addresses, hostname, conditions } of this.#slicesOf(service).flatMap((one) => one.endpoints ?? [])) {
        if (hostname !== undefined) name(addresses[0]!, `${hostname}.${host}`, namespace);
        if (conditions?.ready !== false) name(addresses[0]!, host, namespace);
      }
    }
    return `${lines.join("\n")}\n`;
  }
}
