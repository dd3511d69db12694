import { expect, test } from "vitest";
import { MargayError } from "#protocol/errors.ts";
import { type LoggerOptions, openLogger } from "#service/logger.ts";

function capture(format: LoggerOptions["format"], level: LoggerOptions["level"] = "info") {
  const lines: string[] = [];
  const logger = openLogger({ process: "decode w1", level, format, write: (line) => void lines.push(line) });
  return { lines, logger };
}

test("JSON lines carry time, level, process and message", () => {
  const { lines, logger } = capture("json");
  logger.child({ requestId: "r1" }).warn({ attempt: 2 }, "moved");
  const entry = JSON.parse(lines[0]!);
  expect(entry).toMatchObject({
    level: "warn",
    process: "decode w1",
    message: "moved",
    requestId: "r1",
    attempt: 2,
  });
  expect(entry.time).toMatch(/^\d{4}-\d\d-\d\dT.*Z$/);
});

test("below the level nothing is written", () => {
  const { lines, logger } = capture("json", "error");
  logger.warn({}, "no");
  logger.error({}, "yes");
  expect(lines).toHaveLength(1);
});

test("an expected error is told by code and sentence, an unexpected one with its stack", () => {
  const { lines, logger } = capture("json");
  logger.error({ error: new MargayError("busy", "no slot", { cause: new Error("inner") }) }, "refused");
  logger.error({ error: new TypeError("x is not a function") }, "bug");
  expect(JSON.parse(lines[0]!).error).toEqual({ code: "busy", message: "no slot", cause: "inner" });
  expect(JSON.parse(lines[1]!).error).toMatchObject({ name: "TypeError", message: "x is not a function" });
  expect(JSON.parse(lines[1]!).error.stack).toContain("logger.test.ts");
});

test("on a terminal one short line is written", () => {
  const { lines, logger } = capture("lines");
  logger.info({ port: 8000, model: "a model" }, "listening");
  expect(lines[0]).toMatch(/^\d\d:\d\d:\d\d info {2}decode w1 {2}listening port=8000 model="a model"\n$/);
  logger.error({ error: new MargayError("busy") }, "refused");
  expect(lines[1]).toContain('error="busy: The worker is busy."');
});
