import { flushCompileCache } from "node:module";
import { type Clock, type Random, systemClock, systemRandom } from "./clock.ts";
import { createLogger, type Logger, type LogLevel } from "./logger.ts";

/** The four verbs of a process: created, started, drained, disposed. */
export interface Service extends AsyncDisposable {
  /** Resolves when the service takes work. */
  start(): Promise<void>;
  /** Takes no more work; resolves when the running work has ended, at the latest at `deadlineMs` (epoch ms). */
  drain(deadlineMs: number): Promise<void>;
}

/** What every process's configuration has. */
export interface ServiceConfig {
  readonly logLevel: LogLevel;
  /** Time that running work gets when the process is asked to stop. */
  readonly drainMs: number;
}

export interface ServiceContext {
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  /** Aborted when the process is asked to stop: ends a start that is still under way. */
  readonly signal: AbortSignal;
  /** Asks this process to drain and to exit with 0. `deadlineMs` null: the configured drain time from now. */
  stop(reason: string, deadlineMs?: number | null): void;
  /** Ends this process without draining: it cannot do its work any more. Exit code 1. */
  fail(error: unknown): void;
  /** Sends a message to the parent process if it opened a channel. */
  tellParent(message: object): void;
}

export interface ServiceSpec<C extends ServiceConfig> {
  /** Who speaks in the log: "control-plane", "decode w1". */
  readonly name: string | ((config: C) => string);
  /** Reads the configuration. What it throws is told as one sentence. */
  configure(): C;
  create(config: C, context: ServiceContext): Promise<Service>;
}

/** After the drain's deadline, how long the rest may take before the process ends regardless. */
const DISPOSE_MS = 5_000;
/** After the start: what was compiled for it is kept for the next process, where `NODE_COMPILE_CACHE` says so. */
const KEEP_COMPILED_MS = 1_000;

type Ending =
  | { readonly kind: "stop"; readonly reason: string; readonly deadlineMs: number | null }
  | { readonly kind: "fail"; readonly error: unknown };

/**
 * Runs one service as this process: configured -> created -> started -> (asked to stop) -> drained -> disposed -> exit.
 *
 * 1 SIGTERM, SIGINT and the end of the parent drain it and exit with 0; a second signal ends it at once with 1
 * 2 a failure to configure, create or start is one sentence on stderr and exit 1; its stack is shown at level debug
 * 3 an unexpected error anywhere is logged and ends the process with 1
 * 4 the process ends at most DISPOSE_MS after the drain's deadline
 */
export async function runService<C extends ServiceConfig>(spec: ServiceSpec<C>): Promise<never> {
  const clock = systemClock;
  const provisionalName = typeof spec.name === "string" ? spec.name : "margay";
  let logger = createLogger(provisionalName, "info", process.stderr);
  const ending = Promise.withResolvers<Ending>();
  const abort = new AbortController();
  const end = (how: Ending): void => {
    if (abort.signal.aborted && how.kind === "fail") crash(how.error, "this process cannot go on");
    ending.resolve(how);
    abort.abort(new Error("the process is stopping"));
  };
  const stop = (reason: string, deadlineMs: number | null = null): void => end({ kind: "stop", reason, deadlineMs });
  const crash = (error: unknown, what: string): never => {
    logger.error({ error }, what);
    process.exit(1);
  };
  watchProcess(stop, crash);

  let config: C;
  try {
    config = spec.configure();
  } catch (error) {
    return refuseToStart(provisionalName, error, false);
  }
  const name = typeof spec.name === "string" ? spec.name : spec.name(config);
  logger = createLogger(name, config.logLevel, process.stderr);

  const starting = start(spec, config, {
    clock,
    random: systemRandom,
    logger,
    signal: abort.signal,
    stop,
    fail: (error) => end({ kind: "fail", error }),
    tellParent: (message) => void process.send?.(message, undefined, {}, () => {}),
  }).catch(async (error: unknown) => {
    // A start that was interrupted may fail in any way; it was given up anyhow.
    if (!abort.signal.aborted) await refuseToStart(name, error, config.logLevel === "debug");
    return null;
  });

  const how = await ending.promise;
  const deadlineMs = how.kind === "stop" ? (how.deadlineMs ?? clock.now() + config.drainMs) : clock.now();
  if (how.kind === "stop") logger.info({ reason: how.reason }, "stopping");
  else logger.error({ error: how.error }, "this process cannot go on");
  void clock.sleep(deadlineMs - clock.now() + DISPOSE_MS).then(() => {
    logger.error({}, "the work did not end in time; ending without it");
    process.exit(1);
  });
  try {
    const service = await starting;
    if (how.kind === "stop") await service?.drain(deadlineMs);
    await service?.[Symbol.asyncDispose]();
  } catch (error) {
    crash(error, "the end was not clean");
  }
  if (how.kind === "stop") logger.info({}, "stopped");
  process.exit(how.kind === "stop" ? 0 : 1);
}

async function start<C extends ServiceConfig>(
  spec: ServiceSpec<C>,
  config: C,
  context: ServiceContext,
): Promise<Service> {
  const service = await spec.create(config, context);
  try {
    await service.start();
    context.clock.after(KEEP_COMPILED_MS, () => flushCompileCache());
    return service;
  } catch (error) {
    await service[Symbol.asyncDispose]();
    throw error;
  }
}

function watchProcess(stop: (reason: string) => void, crash: (error: unknown, what: string) => void): void {
  let asked = false;
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.on(signal, () => {
      if (asked) process.exit(1);
      asked = true;
      stop(signal);
    });
  }
  if (process.channel) process.on("disconnect", () => stop("the parent process is gone"));
  process.on("uncaughtException", (error) => crash(error, "an error nobody expected"));
  process.on("unhandledRejection", (error) => crash(error, "a promise nobody waited for failed"));
  // The reader of the log may leave before this process.
  process.stdout.on("error", () => {});
  process.stderr.on("error", () => {});
}

/** Says why in one sentence, to people and to the parent process if that listens, and ends with code 1. */
async function refuseToStart(name: string, error: unknown, withStack: boolean): Promise<never> {
  const sentence = error instanceof Error ? error.message : String(error);
  process.stderr.write(`${name}: ${sentence}\n`);
  if (withStack && error instanceof Error) process.stderr.write(`${error.stack}\n`);
  if (process.send) {
    await new Promise<void>((resolve) => {
      process.send?.({ kind: "failed-to-start", sentence }, undefined, {}, () => resolve());
    });
  }
  process.exit(1);
}
