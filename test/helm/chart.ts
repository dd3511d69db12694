import { readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { loadAll } from "js-yaml";
import { test } from "vitest";
import { chartFolder, type HelmRun, kubernetesTool, runHelm } from "../support/kubernetes-tools.ts";

const found = kubernetesTool("helm");
const helm = "path" in found ? found.path : null;

/** A test that needs helm; where there is none it is skipped and says why. */
export const helmTest =
  "lack" in found ? (name: string, _: unknown) => test.skip(`${name} (not run: ${found.lack})`, () => {}) : test;

export interface KubeObject {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: {
    readonly name: string;
    readonly labels?: Readonly<Record<string, string>>;
    readonly annotations?: Readonly<Record<string, string>>;
  };
  // biome-ignore lint/suspicious/noExplicitAny: objects of many kinds, of which a test reads a few fields
  readonly [field: string]: any;
}

/** Values files in helm/examples, by name; the chart's defaults are `defaults`. */
export const EXAMPLES: ReadonlyMap<string, string | null> = new Map([
  ["defaults", null],
  ...readdirSync(join(chartFolder, "examples"))
    .sort()
    .map((file) => [basename(file, ".yaml"), join(chartFolder, "examples", file)] as const),
]);

export function lint(file: string | null) {
  return runHelm(helm!, ["lint", "--strict", chartFolder, ...(file === null ? [] : ["--values", file])]);
}

const rendering = new Map<string, HelmRun>();

/** `helm template` of a release called margay; `values` come after the file. Done once for the same question. */
export function template(file: string | null, values: object = {}, namespace = "serving"): HelmRun {
  const given = JSON.stringify(values);
  const question = `${file} ${given} ${namespace}`;
  const known = rendering.get(question);
  if (known !== undefined) return known;
  const release = ["template", "margay", chartFolder, "--namespace", namespace];
  const run = runHelm(helm!, [...release, ...(file === null ? [] : ["--values", file]), "--values", "-"], given);
  rendering.set(question, run);
  return run;
}

export function rendered(file: string | null, values: object = {}, namespace = "serving"): readonly KubeObject[] {
  const run = template(file, values, namespace);
  if (!run.ok) throw new Error(run.stderr);
  return (loadAll(run.stdout) as (KubeObject | null)[]).filter((object) => object !== null);
}

export interface Container {
  readonly name: string;
  readonly command: readonly string[];
  readonly env?: readonly { readonly name: string; readonly value?: string; readonly valueFrom?: object }[];
  // biome-ignore lint/suspicious/noExplicitAny: as above
  readonly [field: string]: any;
}

export interface PodTemplate {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
  // biome-ignore lint/suspicious/noExplicitAny: as above
  readonly spec: any;
  readonly containers: readonly Container[];
}

/** Every pod of a release, the test's included, under the name of the object that makes it. */
export function podsOf(objects: readonly KubeObject[]): readonly PodTemplate[] {
  return objects.flatMap((object) => {
    const pod =
      object.kind === "Pod" ? object : (object.spec?.template ?? object.spec?.leaderWorkerTemplate?.workerTemplate);
    if (pod === undefined) return [];
    const { labels = {}, annotations = {} } = pod.metadata;
    return [{ name: object.metadata.name, labels, annotations, spec: pod.spec, containers: pod.spec.containers }];
  });
}
