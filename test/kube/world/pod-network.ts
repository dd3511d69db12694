import { spawnSync } from "node:child_process";

/** The nodes' own address, in the namespace of the cluster's control plane. */
export const NODE_IP = "10.244.0.1";

/** A network namespace with one address. */
export interface PodNetwork {
  readonly ip: string;
  /** As `nsenter --net=` takes it. */
  readonly path: string;
  /** Idempotent. */
  remove(): void;
}

/**
 * Gives each pod a network of its own, as a container runtime does: an own `0.0.0.0`, an own loopback, an address that
 * all others reach, and the Services behind its default route.
 */
export class PodNetworks {
  #count = 0;

  add(): PodNetwork {
    const number = ++this.#count;
    const name = `pod-${number}`;
    const ip = `10.244.${1 + Math.floor(number / 250)}.${1 + (number % 250)}`;
    ip4([
      `netns add ${name}`,
      `link add veth${number} type veth peer name eth0 netns ${name}`,
      `link set veth${number} up`,
      `route add ${ip}/32 dev veth${number} src ${NODE_IP}`,
    ]);
    ip4(
      [
        `addr add ${ip}/32 dev eth0`,
        "link set lo up",
        "link set eth0 up",
        `route add ${NODE_IP} dev eth0 scope link`,
        `route add default via ${NODE_IP}`,
      ],
      name,
    );
    let there = true;
    const remove = (): void => {
      if (there) ip4([`netns del ${name}`]);
      there = false;
    };
    return { ip, path: `/run/netns/${name}`, remove };
  }
}

function ip4(lines: readonly string[], namespace: string | null = null): void {
  const argv = [...(namespace === null ? [] : ["-n", namespace]), "-batch", "-"];
  const done = spawnSync("ip", argv, { input: `${lines.join("\n")}\n`, encoding: "utf8", timeout: 10_000 });
  if (done.status !== 0) throw new Error(`ip ${argv.join(" ")}: ${done.stderr}`);
}
