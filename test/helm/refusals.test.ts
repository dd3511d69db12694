import { describe, expect } from "vitest";
import { helmTest, template } from "./chart.ts";

const nano = { image: "models/nano" };

describe("the schema refuses, with the path of the value,", () => {
  const cases: readonly (readonly [values: object, path: string])[] = [
    [{ replicas: 3 }, "replicas"],
    [{ controlPlane: { replicas: "two" } }, "/controlPlane/replicas"],
    [{ controlPlane: { replica: 2 } }, "/controlPlane"],
    [{ scaling: { prefill: { max: 65 } } }, "/scaling/prefill/max"],
    [{ scaling: { decode: { min: -1 } } }, "/scaling/decode/min"],
    [{ models: { nano: { engine: { backend: "cuda" } } } }, "/models/nano/engine/backend"],
    [{ models: { nano: { engine: { kvMiB: 64 } } } }, "/models/nano/engine"],
    [{ models: { nano: { engine: { speculation: 8 } } } }, "/models/nano/engine/speculation"],
    [{ models: { nano: { volume: { s3: "bucket" } } } }, "/models/nano/volume"],
    [{ models: { Nano: { volume: nano } } }, "/models"],
    [{ models: { nano: null } }, "/models"],
    [{ ranks: { decode: 0 } }, "/ranks/decode"],
    [{ nats: { external: { url: "http://nats" } } }, "/nats/external/url"],
    [{ nats: { storage: { size: "big" } } }, "/nats/storage/size"],
    [{ networkPolicy: { apiServer: { ports: [0] } } }, "/networkPolicy/apiServer/ports/0"],
    [{ kvTls: { secret: "pages" } }, "/kvTls"],
    [{ logLevel: "loud" }, "/logLevel"],
    [{ drainSeconds: 3601 }, "/drainSeconds"],
  ];
  for (const [values, path] of cases) {
    helmTest(`${path}: ${JSON.stringify(values)}`, () => {
      const run = template(null, values);
      expect(run.ok, run.stdout.slice(0, 200)).toBe(false);
      expect(run.stderr).toContain(path);
      expect(run.stderr).toContain("schema");
    });
  }
});

describe("values that do not go together are refused with what to change:", () => {
  const cases: readonly (readonly [values: object, sentence: string])[] = [
    [{ scaling: { prefill: { min: 3, max: 2 } } }, "scaling.prefill: min 3 is more than max 2"],
    [
      { ranks: { decode: 2, least: 3 }, scaling: { decode: { min: 1, max: 1 } } },
      "ranks.least: a worker of 2 ranks cannot go on with 3",
    ],
    [
      { models: { nano: { decode: { resources: { limits: { "nvidia.com/gpu": 8 } } } } } },
      "models.nano.decode.resources.limits: 8 of nvidia.com/gpu would lie idle",
    ],
    [{ models: { nano: { volume: { claim: { name: "weights" } } } } }, "models.nano.volume: 2 of image, claim.name"],
    [{ models: { bare: { volume: {} } } }, "models.bare.volume: 0 of image, claim.name"],
    [{ models: { other: { name: "nano", volume: nano } } }, "is the name of models.nano already"],
    [{ nats: { external: { url: "nats://nats:4222" } } }, "nats.passwordsSecret"],
    [
      { nats: { external: { url: "nats://nats:4222" }, passwordsSecret: "p", tls: { secretName: "t" } } },
      "it must begin with tls://",
    ],
    [{ nats: { tls: { clientsSecretName: "c" } } }, "nats.tls.clientsSecretName: certificates are shown over TLS only"],
    [
      { controlPlane: { tls: { clientsSecretName: "c" } } },
      "controlPlane.tls.clientsSecretName: certificates are shown over TLS only",
    ],
  ];
  for (const [values, sentence] of cases) {
    helmTest(sentence, () => {
      const run = template(null, values);
      expect(run.ok).toBe(false);
      expect(run.stderr).toContain(sentence);
    });
  }
});
