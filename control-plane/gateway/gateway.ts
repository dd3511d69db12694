import type { Server as HttpsServer } from "node:https";
import { type AddressInfo, Server as TcpServer } from "node:net";
import type { Duplex } from "node:stream";
import { type FastifyError, type FastifyInstance, type FastifyReply, type FastifyRequest, fastify } from "fastify";
import type { Bus } from "#protocol/bus/bus.ts";
import { MargayError } from "#protocol/errors.ts";
import type { GatewayId } from "#protocol/ids.ts";
import { atMost } from "#service/at-most.ts";
import type { Clock, Random, Timer } from "#service/clock.ts";
import type { Logger } from "#service/logger.ts";
import type { Metrics } from "#service/metrics.ts";
import type { Tracing } from "#service/tracing/tracing.ts";
import { Prompts } from "../chat/prompts.ts";
import type { ServedModel } from "../chat/served-model.ts";
import type { RequestFlow } from "../flow/request-flow.ts";
import type { RecentWays, Way } from "../flow/way.ts";
import { KEY_REVOKED, type Tenancy } from "../tenancy/tenancy.ts";
import { authenticate, callerOf, checkModel } from "./auth.ts";
import { BatchService } from "./batches/batch-service.ts";
import { chatCompletions } from "./chat-completions.ts";
import { completions } from "./completions.ts";
import { listenFailure, refuseConnection } from "./connections.ts";
import { addConsoleRoutes } from "./console-files.ts";
import { DOCS_HEADERS, DOCS_PAGE } from "./docs-page.ts";
import type { EdgeTls } from "./edge-tls.ts";
import type { Exchange, ExchangeHost } from "./exchange.ts";
import type { FileLimits } from "./files/file-store.ts";
import { fleetView, type OperatorView } from "./fleet-view.ts";
import { GatewayWatch } from "./gateway-watch.ts";
import { addHealthRoutes, type Readiness } from "./health-routes.ts";
import { errorBody, errorHeaders, fromThrown } from "./http-errors.ts";
import { parseJsonBody } from "./json-body.ts";
import { countTokens, createMessage, messageErrorBody } from "./messages-api.ts";
import { addModelRoutes } from "./models.ts";
import { openApiDocument } from "./openapi.ts";
import { addRequestList } from "./request-list.ts";
import { Background } from "./responses/background.ts";
import { type ResponseLimits, ResponseLog } from "./responses/response-log.ts";
import { addResponseRoutes } from "./responses/response-routes.ts";
import type { ResponsesHost } from "./responses/responses-host.ts";
import { RouteTable } from "./route-table.ts";
import { READER_LIMITS, type ReaderLimits } from "./sse.ts";
import type { Vet } from "./structured-output.ts";
import { Timelines } from "./timelines.ts";
import { addTokenizationRoutes } from "./tokenization.ts";
import { usage } from "./usage.ts";

export interface GatewayConfig {
  /** null: nothing listens; connections come through `accept`. */
  readonly host: string | null;
  /** 0 takes any free one. */
  readonly port: number;
  readonly bodyLimitBytes: number;
  /** Largest `n` of one request. */
  readonly maxN: number;
  /** Largest `x-margay-thinkers`. */
  readonly maxThinkers: number;
  /** Longest life of one request, milliseconds. */
  readonly requestMs: number;
  readonly responses: ResponseLimits;
  readonly files: FileLimits;
  /** Requests of one batch that are under way at a time. */
  readonly batchLines: number;
}

export interface GatewayOptions {
  readonly config: GatewayConfig;
  readonly clock: Clock;
  readonly random: Random;
  /** By name; in the order they are listed. */
  readonly models: ReadonlyMap<string, ServedModel>;
  readonly flow: RequestFlow;
  readonly bus: Bus;
  readonly gatewayId: GatewayId;
  readonly outlook: ExchangeHost["outlook"];
  readonly tenancy: Tenancy;
  readonly vet: Vet;
  readonly metrics: Metrics;
  readonly logger: Logger;
  readonly readiness: () => Readiness;
  /** What became of a request; null: it is not among the latest. */
  readonly way: (requestId: string) => Way | null;
  /** Of the latest requests those of a tenant. */
  readonly latest: RecentWays["latest"];
  readonly operator: OperatorView;
  readonly tracing?: Tracing;
  /** None: plain HTTP. */
  readonly tls?: EdgeTls;
  readonly readerLimits?: ReaderLimits;
}

/** Time a client gets to send its whole request, and to take a finished answer. */
const CLIENT_MS = 60_000;
/** An idle connection is closed after this: longer than the idle time of usual proxies. */
const KEEP_ALIVE_MS = 75_000;
/** Answers of batches are kept by then, once the last of them is there. */
const BATCHES_MS = 2_000;
/** A quiet time of a gateway that lingers, before it cuts what connections are left. */
const LAST_WORD_MS = 500;
/** Requests to these are counted, however they end. */
const GENERATION_PATHS: readonly string[] = [
  ...["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"],
];
const MESSAGES_PATH = "/v1/messages";

/**
 * Owns the HTTP edge: the listening socket, the requests being answered, their streams.
 *
 *   made -> listening -> (lingering) -> draining -> closed
 *
 * G1 Every answer carries `x-request-id`; every failure has OpenAI's error form.
 * G2 Each generation request is counted once in `margay_requests_total`, however it ends.
 * G3 Where keys are set, nothing but the open routes (auth.ts) answers without one; a stream, and a response in the background,
 *    whose key is taken from the keys file ends as soon as that is known.
 * G4 `drain` refuses what is new, lets what runs finish until its time is over, then ends it with `shutting_down`.
 */
export class Gateway {
  readonly #app: FastifyInstance;
  readonly #options: GatewayOptions;
  readonly #routes: RouteTable;
  readonly #log: ResponseLog;
  readonly #gateways: GatewayWatch;
  readonly #background: Background;
  readonly #batching: BatchService;
  readonly #timelines: Timelines;
  readonly #prompts: Prompts;
  readonly #active = new Set<string>();
  readonly #running = new Set<Exchange>();
  #state: "made" | "listening" | "lingering" | "draining" | "closed" = "made";
  #url = "";
  #inFlight = 0;
  #onIdle: (() => void) | null = null;

  constructor(options: GatewayOptions) {
    this.#options = options;
    const { config, random } = options;
    const shape = {
      bodyLimit: config.bodyLimitBytes,
      forceCloseConnections: true,
      requestTimeout: CLIENT_MS,
      keepAliveTimeout: KEEP_ALIVE_MS,
      genReqId: () => `req_${random.hex(12)}`,
      routerOptions: { ignoreTrailingSlash: true, maxParamLength: 512 },
      clientErrorHandler: refuseConnection,
      frameworkErrors: (error: FastifyError, request: FastifyRequest, reply: FastifyReply) =>
        this.#answerError(error, request, reply),
    };
    // Both serve alike; only the type of the socket differs.
    this.#app =
      options.tls === undefined
        ? fastify(shape)
        : (fastify({ ...shape, https: options.tls.options }) as unknown as FastifyInstance);
    this.#routes = new RouteTable(this.#app);
    this.#log = new ResponseLog(options.bus, options.gatewayId, config.responses);
    const { bus, clock, logger, metrics, flow, tenancy, models, gatewayId, way } = options;
    this.#gateways = new GatewayWatch(bus, gatewayId, clock);
    this.#timelines = new Timelines({ bus, gateways: this.#gateways, gatewayId, way });
    this.#background = new Background({
      ...{ bus, clock, logger, metrics, flow, tenancy, models, requestMs: config.requestMs },
      ...{ log: this.#log, gateways: this.#gateways, active: this.#active },
    });
    this.#prompts = new Prompts(clock);
    const { files, batchLines: lines, bodyLimitBytes: maxLineBytes } = config;
    this.#batching = new BatchService({
      ...{ bus, gatewayId, clock, random, logger, tenancy, gateways: this.#gateways, files, lines, maxLineBytes },
      askSelf: (request) => this.#app.inject(request),
    });
    this.#addHooks();
    this.#addRoutes();
  }

  /** Listens. Rejects with one clear sentence where the address cannot be had. */
  async start(): Promise<void> {
    const { host, port } = this.#options.config;
    this.#gateways.listen();
    this.#background.watch();
    this.#batching.batches.watch();
    this.#timelines.open();
    if (host === null) {
      await this.#app.ready();
      this.#state = "listening";
      return;
    }
    try {
      await this.#app.listen({ host, port });
    } catch (error) {
      throw listenFailure(error, host, port);
    }
    const { address, family, port: bound } = this.#app.server.address() as AddressInfo;
    const { tls } = this.#options;
    tls?.watch(this.#app.server as unknown as HttpsServer);
    this.#url = `${tls === undefined ? "http" : "https"}://${family === "IPv6" ? `[${address}]` : address}:${bound}`;
    this.#state = "listening";
  }

  /** Serves a connection that did not come through the socket: HTTP/1.1 over any stream of bytes. */
  accept(connection: Duplex): void {
    this.#app.server.emit("connection", connection);
  }

  /** `METHOD /path` of everything it answers. */
  get routes(): readonly string[] {
    return this.#routes.all;
  }

  /** Where it listens, without a slash at the end: `http://127.0.0.1:8000`. Empty before `start`, and where it does not. */
  get url(): string {
    return this.#url;
  }

  /**
   * Stops accepting, gives what runs `graceMs` to finish, ends the rest, closes. Idempotent.
   *
   * `lingerMs`, where another gateway serves in this one's place: nobody is refused. For so long it serves on as ever,
   * then those who still have a connection, once each; every answer tells its client to take another connection.
   */
  async drain(graceMs: number, lingerMs = 0): Promise<void> {
    if (this.#state !== "made" && this.#state !== "listening") return;
    const { clock } = this.#options;
    const endMs = clock.monotonic() + graceMs;
    const left = this.#batching.batches.leave();
    if (lingerMs > 0) {
      this.#state = "lingering";
      await clock.sleep(Math.min(lingerMs, graceMs));
      // Not the HTTP server's own `close`, which cuts idle connections: a request may be on its way on one.
      TcpServer.prototype.close.call(this.#app.server);
      await this.#untilIdle(endMs - clock.monotonic());
      // Who just had an answer may have sent the next request before it read that this connection ends.
      await clock.sleep(Math.max(0, Math.min(LAST_WORD_MS, endMs - clock.monotonic())));
    } else {
      this.#state = "draining";
      this.#app.server.close();
    }
    await this.#untilIdle(endMs - clock.monotonic());
    await atMost(clock, BATCHES_MS, left);
    await this.#close();
  }

  /** Waits for the answers under way; ends those that take longer than `graceMs`. */
  async #untilIdle(graceMs: number): Promise<void> {
    if (this.#inFlight === 0) return;
    const { clock } = this.#options;
    const idle = new Promise<void>((resolve) => {
      this.#onIdle = resolve;
    });
    const timer = clock.after(graceMs, () => {
      for (const exchange of this.#running) exchange.abort(new MargayError("shutting_down"));
      // What is left is written within a moment, or its reader is stuck.
      clock.after(1000, () => this.#onIdle?.());
    });
    await idle;
    timer.cancel();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const exchange of this.#running) exchange.abort(new MargayError("shutting_down"));
    await this.#close();
  }

  async #close(): Promise<void> {
    this.#state = "closed";
    this.#background.close();
    this.#batching.batches.close();
    this.#timelines.close();
    this.#gateways.close();
    this.#options.tls?.close();
    await this.#app.close();
    await this.#prompts.close();
  }

  #addHooks(): void {
    const { clock, metrics, tenancy, tls } = this.#options;
    const app = this.#app;
    app.addHook("onRequest", (request, reply, done) => {
      this.#inFlight++;
      metrics.gauge("margay_http_requests_in_flight", {}, this.#inFlight);
      // An answer that nobody reads must not hold its socket for ever.
      let unread: Timer | null = null;
      reply.raw.once("prefinish", () => {
        unread = clock.after(CLIENT_MS, () => reply.raw.destroy());
      });
      reply.raw.once("close", () => {
        unread?.cancel();
        this.#inFlight--;
        metrics.gauge("margay_http_requests_in_flight", {}, this.#inFlight);
        if (this.#inFlight === 0) this.#onIdle?.();
      });
      reply.header("x-request-id", request.id);
      const theirs = request.headers["x-request-id"];
      if (typeof theirs === "string" && /^[\x21-\x7e]{1,128}$/.test(theirs))
        reply.header("x-client-request-id", theirs);
      if (this.#state === "draining") {
        reply.header("connection", "close");
        return done(new MargayError("shutting_down"));
      }
      try {
        authenticate(tenancy, this.#batching.own, request, tls?.asksClients === true);
        done();
      } catch (error) {
        done(error as Error);
      }
    });
    app.addHook("preHandler", (request, _reply, done) => {
      try {
        checkModel(request);
        done();
      } catch (error) {
        done(error as Error);
      }
    });
    tenancy.onKeysChange(() => this.#endRevoked());
    app.addHook("onSend", (_request, reply, _payload, done) => {
      if (this.#state !== "listening") reply.header("connection", "close");
      done();
    });
    app.removeAllContentTypeParsers();
    app.addContentTypeParser("application/json", { parseAs: "string" }, (_request, text, done) => {
      try {
        done(null, parseJsonBody(text as string));
      } catch (error) {
        done(error as Error);
      }
    });
    app.setErrorHandler((error: FastifyError, request, reply) => this.#answerError(error, request, reply));
    app.setNotFoundHandler((request, reply) => this.#routes.answerUnrouted(request, reply));
  }

  #addRoutes(): void {
    const { clock, metrics, logger, flow, tenancy, outlook, random, models, vet, readiness, config, readerLimits } =
      this.#options;
    const host: ResponsesHost = {
      ...{ log: this.#log, background: this.#background, active: this.#active },
      ...{ clock, metrics, logger, flow, tenancy, outlook, random, models, vet },
      prompts: this.#prompts,
      readerLimits: readerLimits ?? READER_LIMITS,
      requestMs: config.requestMs,
      ...{ maxN: config.maxN, maxThinkers: config.maxThinkers },
      ...(this.#options.tracing === undefined ? {} : { tracing: this.#options.tracing }),
      running: this.#running,
      draining: () => this.#state !== "listening",
    };
    const app = this.#app;
    app.post("/v1/chat/completions", (request, reply) => chatCompletions(host, request, reply));
    app.post("/v1/completions", (request, reply) => completions(host, request, reply));
    app.post(MESSAGES_PATH, (request, reply) => createMessage(host, request, reply));
    addResponseRoutes(app, host);
    this.#batching.addRoutes(app);
    addTokenizationRoutes(app, host);
    addRequestList(app, this.#options.latest);
    app.get("/v1/fleet", (request) => fleetView(this.#options.operator, callerOf(request)));
    app.get<{ Params: { id: string } }>("/v1/requests/:id/timeline", (request) =>
      this.#timelines.find(request.params.id, callerOf(request).tenant.name),
    );
    app.post(`${MESSAGES_PATH}/count_tokens`, (request, reply) => countTokens(host, request, reply));
    addModelRoutes(app, models);
    app.get("/v1/usage", (request, reply) => usage(host, request, reply));
    const document = openApiDocument();
    app.get("/openapi.json", () => document);
    app.get("/docs", (_request, reply) => reply.headers(DOCS_HEADERS).send(DOCS_PAGE));
    addConsoleRoutes(app);
    addHealthRoutes(app, readiness, metrics);
  }

  #endRevoked(): void {
    for (const exchange of this.#running) {
      if (!this.#options.tenancy.holds(exchange.caller))
        exchange.abort(new MargayError("invalid_api_key", KEY_REVOKED));
    }
    this.#background.endRevoked();
  }

  /** The one place that turns a failure into an answer; a failed generation request is counted here. */
  #answerError(thrown: unknown, request: FastifyRequest, reply: FastifyReply): void {
    const { logger, metrics, models, config } = this.#options;
    const error = fromThrown(thrown, config.bodyLimitBytes);
    if (GENERATION_PATHS.includes(request.routeOptions.url ?? "")) {
      const named = (request.body as { readonly model?: unknown } | null | undefined)?.model;
      const model = typeof named === "string" && models.has(named) ? named : "unknown";
      metrics.count("margay_requests_total", { model, outcome: error.code });
    }
    const fields = { requestId: request.id, path: request.routeOptions.url ?? "unknown", error };
    if (error.code === "internal") logger.error(fields, "a request failed");
    else if (error.status >= 500) logger.warn(fields, "a request failed");
    else logger.debug(fields, "a request was refused");
    // Fastify closes the connection of a body it did not take, and a client still sending would then lose the answer to a
    // reset. The rest of the body is read and dropped instead, for as long as a request may take to arrive.
    reply.removeHeader("connection");
    reply.header("x-request-id", request.id);
    const theirs = request.url.startsWith(MESSAGES_PATH);
    const body = theirs ? messageErrorBody(error, request.id) : errorBody(error);
    reply.code(error.status).headers(errorHeaders(error)).send(body);
  }
}

/** Makes the gateway; nothing listens before `start`. */
export function createGateway(options: GatewayOptions): Gateway {
  return new Gateway(options);
}
