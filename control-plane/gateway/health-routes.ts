import type { FastifyInstance } from "fastify";
import type { Metrics } from "#service/metrics.ts";

/** Whether requests can be served now, and what is lacking by name where not. */
export interface Readiness {
  readonly ready: boolean;
  readonly checks: Readonly<Record<string, boolean>>;
}

/** `/livez`, `/readyz` and `/metrics`. */
export function addHealthRoutes(app: FastifyInstance, readiness: () => Readiness, metrics: Metrics): void {
  app.get("/livez", () => ({ status: "ok" }));
  app.get("/readyz", (_request, reply) => {
    const { ready, checks } = readiness();
    reply.code(ready ? 200 : 503);
    return { status: ready ? "ok" : "not ready", checks };
  });
  app.get("/metrics", async (_request, reply) => {
    reply.type(metrics.contentType);
    return await metrics.text();
  });
}
