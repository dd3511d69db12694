import { pino } from "pino";
import { MargayError } from "#protocol/errors.ts";

/** Facts beside a message. Never prompt or generated text. An `error` field is shown with code and message. */
export type LogFields = Readonly<Record<string, unknown>>;

/** Structured log of one process. */
export interface Logger {
  debug(fields: LogFields, message: string): void;
  info(fields: LogFields, message: string): void;
  warn(fields: LogFields, message: string): void;
  error(fields: LogFields, message: string): void;
  child(fields: LogFields): Logger;
}

export type LogLevel = "debug" | "info" | "warn" | "error" | "silent";

export interface LoggerOptions {
  /** Which process speaks: "control-plane", "prefill w1". */
  readonly process: string;
  readonly level: LogLevel;
  /** `lines` for people, `json` for machines. */
  readonly format: "json" | "lines";
  /** Takes one whole line with its newline. */
  readonly write: (line: string) => void;
}

/** A logger that writes to `stream` (stderr): lines for people when it is a terminal, JSON when it is not. */
export function createLogger(process: string, level: LogLevel, stream: NodeJS.WriteStream): Logger {
  return openLogger({ process, level, format: stream.isTTY ? "lines" : "json", write: (line) => stream.write(line) });
}

/** The logger with every choice spelled out. */
export function openLogger(options: LoggerOptions): Logger {
  const { process, level, format, write } = options;
  const target = format === "json" ? write : (line: string) => write(readableLine(JSON.parse(line)));
  const root = pino(
    {
      level,
      base: { process },
      messageKey: "message",
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { error: describeError },
    },
    { write: target },
  );
  return wrap(root);
}

/** Swallows everything. */
export const silentLogger: Logger = {
  debug() {},
  info() {},
  warn() {},
  error() {},
  child: () => silentLogger,
};

function wrap(inner: pino.Logger): Logger {
  return {
    debug: (fields, message) => inner.debug(fields, message),
    info: (fields, message) => inner.info(fields, message),
    warn: (fields, message) => inner.warn(fields, message),
    error: (fields, message) => inner.error(fields, message),
    child: (fields) => wrap(inner.child(fields)),
  };
}

/** An expected failure is told by code and sentence; anything else with its stack, for it is a bug. */
function describeError(error: unknown): unknown {
  if (error instanceof MargayError) {
    const cause = error.cause instanceof Error ? { cause: error.cause.message } : {};
    return { code: error.code, message: error.message, ...cause };
  }
  if (error instanceof Error) return { name: error.name, message: error.message, stack: error.stack };
  return { message: String(error) };
}

/** `20:15:03 warn  decode w1  words of the message  key=value` */
export function readableLine(entry: Readonly<Record<string, unknown>>): string {
  const { time, level, process, message, error, ...fields } = entry;
  const clock = String(time).slice(11, 19);
  const parts = [clock, String(level).padEnd(5), `${process} `, String(message)];
  const facts = Object.entries(fields).map(([key, value]) => `${key}=${plain(value)}`);
  if (typeof error === "object" && error !== null) {
    const { code, message: text, stack } = error as Readonly<Record<string, unknown>>;
    facts.push(`error=${plain(code === undefined ? text : `${code}: ${text}`)}`);
    if (typeof stack === "string") facts.push(`\n${stack}`);
  }
  return `${[parts.join(" "), ...facts].join(" ")}\n`;
}

function plain(value: unknown): string {
  if (typeof value !== "string") return JSON.stringify(value) ?? "undefined";
  return /^[\w.:/@+-]+$/.test(value) ? value : JSON.stringify(value);
}
