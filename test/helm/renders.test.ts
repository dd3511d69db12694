import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect } from "vitest";
import { EXAMPLES, helmTest, lint, podsOf, rendered, template } from "./chart.ts";

const golden = fileURLToPath(new URL("golden", import.meta.url));
const examples = [...EXAMPLES.entries()];

describe.each(examples)("%s", (name, file) => {
  helmTest("passes helm lint", () => {
    const run = lint(file);
    expect(run.ok, run.stdout + run.stderr).toBe(true);
  });

  /** WRITE_GOLDEN=1 rewrites the file instead of checking it. */
  helmTest("renders what is on record", () => {
    const run = template(file);
    expect(run.ok, run.stderr).toBe(true);
    // Passwords are drawn anew at every install; files/nats.conf and the dashboards have tests of their own.
    const text = run.stdout
      .replaceAll(/^( {2}(?:control-plane|prefill|decode|operator): ).{20,}$/gm, "$1(drawn)")
      .replaceAll(/server_name: margay\n(?: {4}.*\n)*? {4}\}\n(?= {0,3}\S| {4}tls)/g, "(files/nats.conf)\n")
      .replaceAll(/^( {2}margay-\S+\.json: \|\n)(?: {4}.*\n)+/gm, "$1    (files/dashboards)\n")
      .replaceAll(/(checksum\/config: ).*/g, "$1(sum)");
    const path = join(golden, `${name}.yaml`);
    if (process.env.WRITE_GOLDEN === "1") writeFileSync(path, text);
    expect(existsSync(path), `${path} is missing: WRITE_GOLDEN=1 writes it`).toBe(true);
    expect(text).toBe(readFileSync(path, "utf8"));
  });

  helmTest("runs every container under the restricted profile", () => {
    for (const { name: pod, spec, containers } of podsOf(rendered(file))) {
      expect(spec.securityContext, pod).toMatchObject({
        runAsNonRoot: true,
        seccompProfile: { type: "RuntimeDefault" },
      });
      for (const container of [...containers, ...(spec.initContainers ?? [])]) {
        expect(container.securityContext, `${pod} ${container.name}`).toMatchObject({
          allowPrivilegeEscalation: false,
          capabilities: { drop: ["ALL"] },
        });
      }
    }
  });

  helmTest("mounts only volumes that there are", () => {
    for (const { name: pod, spec, containers } of podsOf(rendered(file))) {
      const volumes = new Set((spec.volumes ?? []).map((volume: { name: string }) => volume.name));
      // Claims of a StatefulSet become volumes of its pods.
      if (pod.endsWith("-nats")) volumes.add("data");
      for (const container of [...containers, ...(spec.initContainers ?? [])]) {
        for (const mount of container.volumeMounts ?? [])
          expect(volumes, `${pod}: ${mount.name}`).toContain(mount.name);
      }
    }
  });

  helmTest("gives every object a name of its own", () => {
    const names = rendered(file).map((object) => `${object.kind}/${object.metadata.name}`);
    expect(names).toEqual([...new Set(names)]);
  });
});
