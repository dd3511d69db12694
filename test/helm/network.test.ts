import { beforeAll, describe, expect, test } from "vitest";
import { EXAMPLES, helmTest, type KubeObject, podsOf, rendered } from "./chart.ts";
import { allows, type End } from "./policy-evaluation.ts";

interface World {
  readonly policies: readonly KubeObject[];
  readonly pod: (name: string) => End;
}

function worldOf(file: string | null, values: object = {}): World {
  const objects = rendered(file, values);
  const pods = new Map(podsOf(objects).map(({ name, labels }) => [name, labels]));
  return {
    policies: objects.filter((object) => object.kind === "NetworkPolicy"),
    pod: (name) => {
      const labels = pods.get(`margay-${name}`);
      if (labels === undefined) throw new Error(`there is no pod of margay-${name}`);
      return { pod: labels, address: "10.1.2.3" };
    },
  };
}

const internet: End = { address: "203.0.113.7" };
const stranger: End = {
  pod: { app: "other" },
  namespace: { "kubernetes.io/metadata.name": "other" },
  address: "10.9.9.9",
};
const neighbour: End = { pod: { app: "other" }, address: "10.1.9.9" };
const otherRelease: End = {
  pod: {
    "app.kubernetes.io/name": "margay",
    "app.kubernetes.io/instance": "second",
    "app.kubernetes.io/component": "prefill",
  },
};
const dns: End = { pod: { "k8s-app": "kube-dns" }, namespace: { "kubernetes.io/metadata.name": "kube-system" } };
const apiServer: End = { address: "10.0.0.1" };

helmTest("by default only what the product needs gets through", () => {
  const { policies, pod } = worldOf(null);
  const open = (from: End, to: End, port: number, protocol?: string) => allows(policies, from, to, port, protocol);
  const control = pod("control-plane");
  const [prefill, decode, nats, test] = [pod("nano-prefill"), pod("nano-decode"), pod("nats"), pod("chat")];

  for (const client of [internet, stranger, neighbour, test]) expect(open(client, control, 8000)).toBe(true);
  expect(open(prefill, decode, 7000)).toBe(true);
  for (const process of [control, prefill, decode]) {
    expect(open(process, nats, 4222)).toBe(true);
    expect(open(process, dns, 53, "UDP")).toBe(true);
  }
  expect(open(control, apiServer, 6443)).toBe(true);

  // Pages: nobody else reaches the port, and nobody another port.
  for (const from of [control, decode, nats, test, internet, stranger, neighbour, otherRelease]) {
    expect(open(from, decode, 7000), JSON.stringify(from)).toBe(false);
  }
  expect(open(prefill, decode, 7001)).toBe(false);
  expect(open(decode, prefill, 7000)).toBe(false);
  // NATS: the release's processes alone.
  for (const from of [test, internet, stranger, neighbour, otherRelease]) expect(open(from, nats, 4222)).toBe(false);
  // Workers call nobody else, and are called by nobody.
  for (const worker of [prefill, decode, nats]) {
    for (const to of [apiServer, internet]) expect(open(worker, to, 443)).toBe(false);
    for (const from of [internet, stranger, neighbour]) expect(open(from, worker, 8080)).toBe(false);
  }
  expect(open(prefill, control, 8000)).toBe(false);
  expect(open(control, internet, 80)).toBe(false);
});

describe("a cluster that names its own", () => {
  let world: World;
  beforeAll(() => {
    const file = EXAMPLES.get("large-checkpoint")!;
    try {
      world = worldOf(file);
    } catch {
      // Without helm the test below is skipped.
    }
  });

  helmTest("lets in its clients, its monitoring and its API server, and no others", () => {
    const { policies, pod } = world;
    const control = pod("control-plane");
    const monitoring: End = { pod: {}, namespace: { "kubernetes.io/metadata.name": "monitoring" } };
    const client: End = { pod: {}, namespace: { "margay.example/client": "true" } };
    expect(allows(policies, client, control, 8000)).toBe(true);
    expect(allows(policies, pod("chat"), control, 8000)).toBe(true);
    expect(allows(policies, stranger, control, 8000)).toBe(false);
    expect(allows(policies, internet, control, 8000)).toBe(false);
    for (const target of [pod("flash-prefill"), pod("flash-decode")]) {
      expect(allows(policies, monitoring, target, 8080)).toBe(true);
      expect(allows(policies, monitoring, target, 7000)).toBe(false);
      expect(allows(policies, client, target, 8080)).toBe(false);
    }
    expect(allows(policies, monitoring, control, 8000)).toBe(true);
    expect(allows(policies, control, apiServer, 6443)).toBe(true);
    expect(allows(policies, control, internet, 6443)).toBe(false);
  });
});

helmTest("ranks of one pool exchange rows, those of another do not", () => {
  const { policies, pod } = worldOf(EXAMPLES.get("expert-groups")!);
  const [prefill, decode] = [pod("nano-prefill"), pod("nano-decode")];
  expect(allows(policies, decode, decode, 41_234)).toBe(true);
  expect(allows(policies, prefill, decode, 41_235)).toBe(true);
  expect(allows(policies, prefill, prefill, 41_234)).toBe(false);
  expect(allows(policies, stranger, decode, 41_234)).toBe(false);
});

helmTest("a server of one's own is reached at its port alone", () => {
  const { policies, pod } = worldOf(EXAMPLES.get("own-nats")!);
  const server: End = { pod: { app: "nats" }, namespace: { "kubernetes.io/metadata.name": "messaging" } };
  for (const name of ["control-plane", "nano-prefill", "nano-decode"]) {
    expect(allows(policies, pod(name), server, 4222)).toBe(true);
    expect(allows(policies, pod(name), server, 8222)).toBe(false);
  }
});

helmTest("they can be left out", () => {
  expect(worldOf(null, { networkPolicy: { enabled: false } }).policies).toEqual([]);
});

test("the evaluation knows a policy that opens too much", () => {
  const everybody = {
    ...{ apiVersion: "networking.k8s.io/v1", kind: "NetworkPolicy", metadata: { name: "open" } },
    spec: { podSelector: {}, policyTypes: ["Ingress"], ingress: [{}] },
  };
  expect(allows([everybody], stranger, neighbour, 1)).toBe(true);
  expect(allows([{ ...everybody, spec: { podSelector: {}, policyTypes: ["Ingress"] } }], stranger, neighbour, 1)).toBe(
    false,
  );
});
