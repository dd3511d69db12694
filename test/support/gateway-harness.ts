import { fileURLToPath } from "node:url";
import type { Bus } from "#protocol/bus/bus.ts";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import type { GatewayId, ModelName } from "#protocol/ids.ts";
import type { RoleOutlook } from "#protocol/scaling.ts";
import { type Clock, systemClock, systemRandom } from "#service/clock.ts";
import { silentLogger } from "#service/logger.ts";
import { createMetrics, type Metrics } from "#service/metrics.ts";
import { loadServedModel, type ServedModel } from "../../control-plane/chat/served-model.ts";
import type { EdgeTls } from "../../control-plane/gateway/edge-tls.ts";
import type { OperatorView } from "../../control-plane/gateway/fleet-view.ts";
import {
  createGateway,
  type Gateway,
  type GatewayConfig,
  type GatewayOptions,
} from "../../control-plane/gateway/gateway.ts";
import type { Readiness } from "../../control-plane/gateway/health-routes.ts";
import type { ReaderLimits } from "../../control-plane/gateway/sse.ts";
import type { Vet } from "../../control-plane/gateway/structured-output.ts";
import { openTenancy, type Tenancy } from "../../control-plane/tenancy/tenancy.ts";
import { FakeFlow, type FlowScript } from "./fake-flow.ts";

const NANO = fileURLToPath(new URL("../../models/nano", import.meta.url));
let nano: Promise<ServedModel> | null = null;

/** The bundled model's tokenizer, template and defaults; loaded once per test file. */
export function nanoModel(): Promise<ServedModel> {
  nano ??= loadServedModel("nano" as ModelName, NANO);
  return nano;
}

/** What an operator sees of a system without workers. */
const NO_FLEET: OperatorView = {
  status: () => ({ kind: "status-report", gatewayId: "gw-test" as GatewayId, upMs: 0, ranks: [], models: [] }),
  explain: () => ({ kind: "explain-report", models: [] }),
};

export interface Harness extends AsyncDisposable {
  readonly gateway: Gateway;
  readonly url: string;
  readonly flow: FakeFlow;
  readonly metrics: Metrics;
  readonly model: ServedModel;
  post(path: string, body: unknown, init?: RequestInit): Promise<Response>;
  chat(body?: object, init?: RequestInit): Promise<Response>;
}

/** A listening gateway over a scripted flow. */
export async function startHarness(
  script: FlowScript,
  options: {
    readonly clock?: Clock;
    readonly config?: Partial<GatewayConfig>;
    readonly readiness?: () => Readiness;
    readonly readerLimits?: ReaderLimits;
    readonly vet?: Vet;
    readonly bus?: Bus;
    readonly gatewayId?: string;
    readonly outlook?: () => readonly RoleOutlook[];
    readonly tenancy?: Tenancy;
    readonly tls?: EdgeTls;
    readonly way?: GatewayOptions["way"];
    readonly latest?: GatewayOptions["latest"];
    readonly operator?: OperatorView;
  } = {},
): Promise<Harness> {
  const model = await nanoModel();
  const flow = new FakeFlow(script);
  const clock = options.clock ?? systemClock;
  const metrics = createMetrics({ processMetrics: false });
  const gateway = createGateway({
    config: {
      host: "127.0.0.1",
      port: 0,
      bodyLimitBytes: 1_048_576,
      maxN: 4,
      maxThinkers: 4,
      requestMs: 60_000,
      responses: { maxAgeMs: 3_600_000, maxBytes: 1_048_576 },
      files: { maxAgeMs: 3_600_000, maxBytes: 16_777_216, maxFileBytes: 4_194_304 },
      batchLines: 4,
      ...options.config,
    },
    clock,
    random: systemRandom,
    models: new Map([[model.name, model]]),
    flow,
    bus: options.bus ?? new MemoryNetwork(clock, systemRandom).connect("control-plane"),
    gatewayId: (options.gatewayId ?? "gw-test") as GatewayId,
    outlook: options.outlook ?? (() => []),
    tenancy: options.tenancy ?? openTenancy,
    vet: options.vet ?? (async () => ({ fault: null, first: null })),
    metrics,
    logger: silentLogger,
    way: options.way ?? (() => null),
    latest: options.latest ?? (() => []),
    operator: options.operator ?? NO_FLEET,
    readiness: options.readiness ?? (() => ({ ready: true, checks: {} })),
    ...(options.tls ? { tls: options.tls } : {}),
    ...(options.readerLimits ? { readerLimits: options.readerLimits } : {}),
  });
  await gateway.start();
  const post = (path: string, body: unknown, init: RequestInit = {}) =>
    fetch(`${gateway.url}${path}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: typeof body === "string" ? body : JSON.stringify(body),
      ...init,
    });
  return {
    ...{ gateway, flow, metrics, model, post },
    url: gateway.url,
    chat: (body = {}, init) =>
      post("/v1/chat/completions", { model: "nano", messages: [{ role: "user", content: "Hi" }], ...body }, init),
    [Symbol.asyncDispose]: () => gateway[Symbol.asyncDispose](),
  };
}

/** A stream taken apart. */
export interface ReadStream {
  readonly events: readonly unknown[];
  readonly comments: readonly string[];
  readonly done: boolean;
}

/** Reads a whole SSE body; throws on anything that is no event and no comment. */
export async function readStream(response: Response): Promise<ReadStream> {
  const events: unknown[] = [];
  const comments: string[] = [];
  let done = false;
  for (const block of (await response.text()).split("\n\n")) {
    if (block === "") continue;
    if (done) throw new Error(`after [DONE]: ${block}`);
    if (block.startsWith(": ")) comments.push(block.slice(2));
    else if (block === "data: [DONE]") done = true;
    else if (block.startsWith("data: ")) events.push(JSON.parse(block.slice(6)));
    else throw new Error(`no SSE block: ${block}`);
  }
  return { events, comments, done };
}

/** Polls (by turns of the event loop) until `condition` holds; fails after `withinMs`. */
export async function eventually(condition: () => boolean | Promise<boolean>, withinMs = 20_000): Promise<void> {
  const deadline = performance.now() + withinMs;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error("the condition did not come to hold in time");
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
