import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { BUS_ROLES } from "#protocol/permissions.ts";
import { readWorkerConfig } from "#service/worker-config.ts";
import { readControlPlaneConfig } from "../../control-plane/config.ts";
import { MODEL_ANNOTATION, RELEASE_LABEL, ROLE_LABEL } from "../../control-plane/kube/worker-pool.ts";
import { chartFolder } from "../support/kubernetes-tools.ts";
import { type Container, EXAMPLES, helmTest, podsOf, rendered } from "./chart.ts";

const FIELDS: Readonly<Record<string, string>> = {
  "status.podIP": "10.1.2.3",
  "metadata.name": "margay-nano-decode-7d9c5b-x2x4z",
  "metadata.labels['leaderworkerset.sigs.k8s.io/group-index']": "1",
  "metadata.labels['leaderworkerset.sigs.k8s.io/worker-index']": "3",
};

/** What the kubelet would give the process. */
function environmentOf(container: Container): Record<string, string> {
  const values: Record<string, string> = {};
  for (const { name, value, valueFrom } of container.env ?? []) {
    const source = valueFrom as { fieldRef?: { fieldPath: string }; secretKeyRef?: { name: string; key: string } };
    const given = value ?? (source.secretKeyRef !== undefined ? "secret" : FIELDS[source.fieldRef!.fieldPath]);
    values[name] = given!.replaceAll(/\$\(([A-Z_]+)\)/g, (whole, other: string) => values[other] ?? whole);
  }
  return values;
}

describe.each([...EXAMPLES])("%s", (_, file) => {
  helmTest("gives the processes settings that they understand", () => {
    for (const { name, annotations, labels, containers } of podsOf(rendered(file))) {
      for (const container of containers) {
        const environment = environmentOf(container);
        const what = `${name}: ${JSON.stringify(environment)}`;
        if (container.name === "control-plane") {
          const config = readControlPlaneConfig(environment);
          expect(config.kube, what).toEqual({ namespace: null, release: "margay", podName: FIELDS["metadata.name"] });
          expect(config.gateway.host, what).toBe("10.1.2.3");
          expect(config.tls !== null, what).toBe(container.readinessProbe.httpGet.scheme === "HTTPS");
        } else if (container.name === "worker") {
          const config = readWorkerConfig(environment);
          expect(config.modelName, what).toBe(annotations[MODEL_ANNOTATION]);
          expect(config.nats.user, what).toBe(labels[ROLE_LABEL]);
          expect(config.engine.kvHost, what).toBe("10.1.2.3");
          expect(config.rank, what).toBeLessThan(config.ranks);
        }
      }
    }
  });

  helmTest("starts programs that there are, with time to end", () => {
    for (const { name, spec, containers } of podsOf(rendered(file))) {
      for (const { name: container, command, lifecycle, ...rest } of containers) {
        if (command[0] === "node" && command[1] !== "--input-type=module") {
          expect(existsSync(join(chartFolder, "..", command[1]!)), `${name}: ${command}`).toBe(true);
          const drain = Number(rest.env!.find((variable) => variable.name === "MARGAY_DRAIN_SECONDS")!.value);
          const pause = lifecycle?.preStop.sleep.seconds ?? 0;
          expect(spec.terminationGracePeriodSeconds, container).toBeGreaterThanOrEqual(drain + pause + 10);
          expect(rest.readinessProbe.httpGet.path).toBe("/readyz");
        }
      }
    }
  });

  helmTest("tells every model to control plane and workers alike", () => {
    const pods = podsOf(rendered(file));
    const controlPlane = pods.find((pod) => pod.name === "margay-control-plane")!;
    const told = [...readControlPlaneConfig(environmentOf(controlPlane.containers[0]!)).models];
    const pools = pods.filter((pod) => pod.labels[ROLE_LABEL] !== undefined);
    expect(pools).toHaveLength(2 * told.length);
    for (const { labels, annotations, containers } of pools) {
      expect(labels[RELEASE_LABEL]).toBe("margay");
      const { modelName, engine } = readWorkerConfig(environmentOf(containers[0]!));
      expect(told.find(([name]) => name === modelName)?.[1]).toBe(engine.modelFolder);
      expect(annotations[MODEL_ANNOTATION]).toBe(modelName);
    }
  });
});

helmTest("the control plane may do what it does and no more; nobody else has a token", () => {
  const objects = rendered(null);
  const role = objects.find((object) => object.kind === "Role")!;
  expect(role.rules).toEqual([
    { apiGroups: [""], resources: ["pods"], verbs: ["get", "list", "watch", "delete"] },
    { apiGroups: ["apps"], resources: ["deployments"], verbs: ["get", "list", "watch"] },
    { apiGroups: ["apps"], resources: ["deployments/scale", "deployments/status"], verbs: ["patch"] },
    { apiGroups: ["coordination.k8s.io"], resources: ["leases"], verbs: ["get", "create", "update"] },
    { apiGroups: ["events.k8s.io"], resources: ["events"], verbs: ["get", "create", "patch"] },
  ]);
  const binding = objects.find((object) => object.kind === "RoleBinding")!;
  expect(binding.subjects).toEqual([{ kind: "ServiceAccount", name: "margay-control-plane", namespace: "serving" }]);
  expect(objects.filter((object) => object.kind.startsWith("ClusterRole"))).toEqual([]);
  for (const { name, spec } of podsOf(objects)) {
    const trusted = name === "margay-control-plane";
    expect(spec.serviceAccountName, name).toBe(trusted ? "margay-control-plane" : "margay-worker");
    if (!trusted) expect(spec.automountServiceAccountToken, name).toBe(false);
  }
});

helmTest("NATS is given a password for every user", () => {
  const objects = rendered(null);
  const secret = objects.find((object) => object.kind === "Secret")!;
  expect(Object.keys(secret.data).sort()).toEqual([...BUS_ROLES].sort());
  // A value that begins with a letter is text to the server, whatever follows.
  for (const value of Object.values<string>(secret.data)) {
    expect(Buffer.from(value, "base64").toString()).toMatch(/^p[A-Za-z0-9]{31}$/);
  }
  const nats = podsOf(objects).find((pod) => pod.name === "margay-nats")!;
  const given = nats.containers[0]!.env!.map((variable) => variable.name).filter((name) => name !== "POD_IP");
  const config = objects.find((object) => object.kind === "ConfigMap")!.data["nats.conf"] as string;
  expect([...config.matchAll(/\$(PASSWORD_[A-Z_]+)/g)].map((match) => match[1]).sort()).toEqual(given.sort());
});
