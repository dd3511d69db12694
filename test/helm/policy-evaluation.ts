import type { KubeObject } from "./chart.ts";

interface Expression {
  readonly key: string;
  readonly operator: "In" | "NotIn" | "Exists" | "DoesNotExist";
  readonly values?: readonly string[];
}

interface Selector {
  readonly matchLabels?: Readonly<Record<string, string>>;
  readonly matchExpressions?: readonly Expression[];
}

interface Peer {
  readonly podSelector?: Selector;
  readonly namespaceSelector?: Selector;
  readonly ipBlock?: { readonly cidr: string };
}

interface Rule {
  readonly from?: readonly Peer[];
  readonly to?: readonly Peer[];
  readonly ports?: readonly { readonly port: number; readonly protocol?: string }[];
}

/** One end of a connection; without `pod` it lies outside the cluster. */
export interface End {
  readonly pod?: Readonly<Record<string, string>>;
  /** Labels of its namespace; none: that of the release. */
  readonly namespace?: Readonly<Record<string, string>>;
  readonly address?: string;
}

/** Whether these policies let a connection through, by the rules of networking.k8s.io/v1. */
export function allows(policies: readonly KubeObject[], from: End, to: End, port: number, protocol = "TCP"): boolean {
  return passes(policies, "Ingress", to, from, port, protocol) && passes(policies, "Egress", from, to, port, protocol);
}

/** An end that no policy of the direction selects takes everything. */
function passes(
  policies: readonly KubeObject[],
  direction: "Ingress" | "Egress",
  end: End,
  other: End,
  port: number,
  protocol: string,
): boolean {
  const { pod, namespace } = end;
  if (pod === undefined || namespace !== undefined) return true;
  const selecting = policies.filter(
    ({ spec }) => spec.policyTypes.includes(direction) && matches(spec.podSelector, pod),
  );
  if (selecting.length === 0) return true;
  return selecting.some(({ spec }) => {
    const rules: readonly Rule[] = (direction === "Ingress" ? spec.ingress : spec.egress) ?? [];
    return rules.some((rule) => {
      const peers = direction === "Ingress" ? rule.from : rule.to;
      const named = rule.ports?.some((p) => p.port === port && (p.protocol ?? "TCP") === protocol) ?? true;
      return named && (peers === undefined || peers.some((peer) => isPeer(peer, other)));
    });
  });
}

function isPeer(peer: Peer, { pod, namespace, address }: End): boolean {
  if (peer.ipBlock !== undefined) return address !== undefined && inBlock(address, peer.ipBlock.cidr);
  if (pod === undefined) return false;
  const place =
    peer.namespaceSelector === undefined
      ? namespace === undefined
      : namespace !== undefined && matches(peer.namespaceSelector, namespace);
  return place && (peer.podSelector === undefined || matches(peer.podSelector, pod));
}

function matches({ matchLabels = {}, matchExpressions = [] }: Selector, labels: Readonly<Record<string, string>>) {
  return (
    Object.entries(matchLabels).every(([key, value]) => labels[key] === value) &&
    matchExpressions.every(({ key, operator, values = [] }) => {
      const value = labels[key];
      if (operator === "Exists") return value !== undefined;
      if (operator === "DoesNotExist") return value === undefined;
      const among = value !== undefined && values.includes(value);
      return operator === "In" ? among : !among;
    })
  );
}

function inBlock(address: string, cidr: string): boolean {
  const [network, bits] = cidr.split("/") as [string, string];
  const number = (text: string) => text.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
  const size = 2 ** (32 - Number(bits));
  return Math.floor(number(address) / size) === Math.floor(number(network) / size);
}
