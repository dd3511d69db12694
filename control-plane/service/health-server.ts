import { createServer, type ServerResponse } from "node:http";
import type { Metrics } from "./metrics.ts";

/** Whether this process can do its work now, and what is lacking by name where not. */
export interface Readiness {
  readonly ready: boolean;
  readonly checks: Readonly<Record<string, boolean>>;
}

export interface HealthServerOptions {
  readonly host: string;
  /** 0 takes any free one. */
  readonly port: number;
  readonly readiness: () => Readiness;
  readonly metrics: Metrics;
  /** Records for some milliseconds what the process does; null: it is being recorded already, or not ready. */
  readonly trace?: (ms: number) => Promise<object | null>;
}

export interface HealthServer extends AsyncDisposable {
  /** Address with the port that was taken, without a slash at the end. */
  readonly url: string;
}

/** A scrape that takes longer is cut off. */
const REQUEST_MS = 10_000;
const MOST_TRACE_MS = 10_000;

/**
 * Serves `/livez` (200 while the process runs), `/readyz` (200 or 503 with the checks) and `/metrics`,
 * and where the process can be traced `/trace?ms=N`. It stays up
 * while the process drains, so that both can be watched to the end; disposing closes it at once.
 * Rejects with one sentence when the port cannot be had.
 */
export async function startHealthServer(options: HealthServerOptions): Promise<HealthServer> {
  const { host, port, readiness, metrics } = options;
  const server = createServer({ requestTimeout: REQUEST_MS, headersTimeout: REQUEST_MS }, (request, response) => {
    const [path, query] = (request.url ?? "/").split("?", 2);
    if (request.method !== "GET" && request.method !== "HEAD") {
      return json(response, 405, { status: "only GET is allowed here" });
    }
    if (path === "/livez") return json(response, 200, { status: "ok" });
    if (path === "/readyz") {
      const { ready, checks } = readiness();
      return json(response, ready ? 200 : 503, { status: ready ? "ok" : "not ready", checks });
    }
    if (path === "/trace" && options.trace !== undefined) {
      const ms = Number(new URLSearchParams(query).get("ms") ?? 1_000);
      if (!(ms > 0 && ms <= MOST_TRACE_MS)) {
        return json(response, 400, { status: `ms must be from 1 to ${MOST_TRACE_MS}` });
      }
      options.trace(ms).then(
        (spans) => (spans === null ? json(response, 409, { status: "not now" }) : json(response, 200, spans)),
        () => json(response, 500, { status: "the trace could not be taken" }),
      );
      return;
    }
    if (path !== "/metrics") return json(response, 404, { status: "there are /livez, /readyz and /metrics" });
    metrics.text().then(
      (text) => response.writeHead(200, { "content-type": metrics.contentType }).end(text),
      () => json(response, 500, { status: "the metrics could not be collected" }),
    );
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const why = error.code === "EADDRINUSE" ? "is in use" : `cannot be listened on (${error.message})`;
      reject(new Error(`Port ${port} of ${host} ${why}; set MARGAY_HEALTH_PORT or MARGAY_HEALTH_HOST.`));
    });
    server.listen(port, host, resolve);
  });
  const address = server.address();
  const taken = typeof address === "object" && address !== null ? address.port : port;
  return {
    url: `http://${host.includes(":") ? `[${host}]` : host}:${taken}`,
    [Symbol.asyncDispose]: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function json(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}
