/**
 * The Prometheus operator's kinds, in the shape in which it publishes them, as far as the chart uses them: what is not
 * named here the API server refuses.
 */

interface Schema {
  readonly type?: string;
  readonly [rule: string]: unknown;
}

const text: Schema = { type: "string" };
const texts: Schema = { type: "object", additionalProperties: text };
const list = (items: Schema): Schema => ({ type: "array", items });
const object = (properties: Readonly<Record<string, Schema>>, ...required: readonly string[]): Schema => ({
  ...{ type: "object", properties },
  ...(required.length === 0 ? {} : { required }),
});

const DURATION = "^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$";
const duration: Schema = { type: "string", pattern: DURATION };

const selector = object({
  matchLabels: texts,
  matchExpressions: list(object({ key: text, operator: text, values: list(text) }, "key", "operator")),
});

const ACTIONS = ["replace", "keep", "drop", "hashmod", "labelmap", "labeldrop", "labelkeep", "lowercase", "uppercase"];
const relabelling = object({
  action: { type: "string", enum: [...ACTIONS, ...ACTIONS.map((name) => name[0]!.toUpperCase() + name.slice(1))] },
  sourceLabels: list({ type: "string", pattern: "^[a-zA-Z_][a-zA-Z0-9_]*$" }),
  ...{ regex: text, separator: text, targetLabel: text, replacement: text },
});

const secretKey = object({ name: text, key: text, optional: { type: "boolean" } }, "key");
const tls = object({
  ca: object({ secret: secretKey, configMap: secretKey }),
  cert: object({ secret: secretKey, configMap: secretKey }),
  ...{ keySecret: secretKey, serverName: text, insecureSkipVerify: { type: "boolean" } },
});

const endpoint = object({
  ...{ port: text, path: text, interval: duration, scrapeTimeout: duration },
  scheme: { type: "string", enum: ["http", "https"] },
  tlsConfig: tls,
  ...{ metricRelabelings: list(relabelling), relabelings: list(relabelling) },
});

const expression: Schema = {
  ...{ "x-kubernetes-int-or-string": true },
  anyOf: [{ type: "integer" }, { type: "string" }],
};
const rule = object(
  {
    ...{ alert: text, record: text, expr: expression, for: duration, keep_firing_for: { ...duration, minLength: 1 } },
    ...{ labels: texts, annotations: texts },
  },
  "expr",
);
const group = object(
  { name: { type: "string", minLength: 1 }, interval: duration, rules: list(rule), labels: texts },
  "name",
);

function definition(kind: string, plural: string, spec: Schema): object {
  const name = { kind, listKind: `${kind}List`, plural, singular: kind.toLowerCase() };
  return {
    apiVersion: "apiextensions.k8s.io/v1",
    kind: "CustomResourceDefinition",
    metadata: { name: `${plural}.monitoring.coreos.com` },
    spec: {
      ...{ group: "monitoring.coreos.com", scope: "Namespaced", names: name },
      versions: [
        {
          ...{ name: "v1", served: true, storage: true },
          schema: {
            openAPIV3Schema: object({ apiVersion: text, kind: text, metadata: { type: "object" }, spec }, "spec"),
          },
        },
      ],
    },
  };
}

/** Definitions by the path under which their objects are then found in a namespace. */
export const PROMETHEUS_KINDS: ReadonlyMap<string, object> = new Map(
  [
    ["ServiceMonitor", "servicemonitors", object({ selector, endpoints: list(endpoint) }, "selector", "endpoints")],
    ["PodMonitor", "podmonitors", object({ selector, podMetricsEndpoints: list(endpoint) }, "selector")],
    ["PrometheusRule", "prometheusrules", object({ groups: list(group) })],
  ].map(([kind, plural, spec]) => [
    `/apis/monitoring.coreos.com/v1/namespaces/default/${plural as string}`,
    definition(kind as string, plural as string, spec as Schema),
  ]),
);
