import { expect, test } from "vitest";
import type { RankId } from "#protocol/ids.ts";
import { subjects } from "#protocol/subjects.ts";
import { observeBus } from "#service/bus-observer.ts";
import { openLogger } from "#service/logger.ts";
import { createMetrics } from "#service/metrics.ts";

test("what happens on the bus is logged, and counted by kinds of subjects rather than by names", async () => {
  const lines: string[] = [];
  const logger = openLogger({ process: "t", level: "info", format: "json", write: (line) => void lines.push(line) });
  const metrics = createMetrics({ processMetrics: false });
  const observer = observeBus(logger, metrics);
  expect(await metrics.text()).toContain("margay_bus_connected 1");
  observer.onState("disconnected", "lost nats://x");
  expect(await metrics.text()).toContain("margay_bus_connected 0");
  observer.onState("connected", "back");
  observer.onRejected(subjects.acks("w1-r0" as RankId), "seq: too small");
  observer.onRejected(subjects.acks("w2-r0" as RankId), "seq: too small");
  observer.onDropped(subjects.beat("w1-r0" as RankId));
  observer.onDenied("publish", subjects.reserve("w1-r0" as RankId));
  observer.onHandlerError(subjects.hello(), new Error("oops"));
  const text = await metrics.text();
  expect(text).toContain("margay_bus_connected 1");
  expect(text).toContain("margay_bus_reconnects_total 1");
  expect(text).toContain('margay_bus_rejected_total{subject="rank.acks"} 2');
  expect(text).toContain('margay_bus_dropped_total{subject="fleet.beat"} 1');
  expect(text).toContain('margay_bus_denied_total{operation="publish"} 1');
  expect(lines.map((line) => JSON.parse(line).level)).toEqual(["warn", "info", "warn", "warn", "error", "error"]);
});
