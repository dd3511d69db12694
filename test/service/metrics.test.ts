import { expect, test } from "vitest";
import { METRICS } from "#protocol/metrics.ts";
import { createMetrics } from "#service/metrics.ts";

test("a declared metric appears with its help, type and labels once it was touched", async () => {
  const metrics = createMetrics({ processMetrics: false });
  metrics.count("margay_requests_total", { model: "nano", outcome: "ok" });
  metrics.count("margay_requests_total", { model: "nano", outcome: "ok" }, 2);
  metrics.gauge("margay_workers", { role: "decode", state: "ready" }, 3);
  metrics.observe("margay_queue_seconds", { model: "nano" }, 0.02);
  const text = await metrics.text();
  expect(text).toContain(`# HELP margay_requests_total ${METRICS.margay_requests_total.help}`);
  expect(text).toContain("# TYPE margay_requests_total counter");
  expect(text).toContain('margay_requests_total{model="nano",outcome="ok"} 3');
  expect(text).toContain('margay_workers{role="decode",state="ready"} 3');
  expect(text).toContain('margay_queue_seconds_bucket{le="0.025",model="nano"} 1');
  expect(text).not.toContain("margay_kv_pages");
});

test("a total kept elsewhere is copied, and a smaller one counts as a fresh start", async () => {
  const metrics = createMetrics({ processMetrics: false });
  let total = 10;
  metrics.onCollect(() => metrics.countTotal("margay_prefill_tokens_total", { role: "prefill" }, total));
  expect(await metrics.text()).toContain('margay_prefill_tokens_total{role="prefill"} 10');
  total = 14;
  expect(await metrics.text()).toContain('margay_prefill_tokens_total{role="prefill"} 14');
  total = 5;
  expect(await metrics.text()).toContain('margay_prefill_tokens_total{role="prefill"} 19');
});

test("series for hot paths add to the same numbers", async () => {
  const metrics = createMetrics({ processMetrics: false });
  const series = metrics.counter("margay_retries_total", { code: "busy" });
  series.add();
  series.add(2);
  metrics.count("margay_retries_total", { code: "busy" });
  metrics.histogram("margay_batch_tokens", { role: "decode" }).observe(16);
  const text = await metrics.text();
  expect(text).toContain('margay_retries_total{code="busy"} 4');
  expect(text).toContain('margay_batch_tokens_sum{role="decode"} 16');
});

test("process metrics are there when asked for", async () => {
  expect(await createMetrics({ processMetrics: true }).text()).toContain("process_resident_memory_bytes");
  expect(await createMetrics({ processMetrics: false }).text()).not.toContain("process_resident_memory_bytes");
});

test("names, labels and closed label values are checked by the compiler", () => {
  const metrics = createMetrics({ processMetrics: false });
  const never = () => {
    // @ts-expect-error: no such metric
    metrics.count("margay_request_total", { model: "nano", outcome: "ok" });
    // @ts-expect-error: not a counter
    metrics.count("margay_queue_seconds", { model: "nano" });
    // @ts-expect-error: no such label
    metrics.count("margay_cold_starts_total", { role: "decode" });
    // @ts-expect-error: a label is missing
    metrics.count("margay_requests_total", { model: "nano" });
    // @ts-expect-error: no such outcome
    metrics.count("margay_requests_total", { model: "nano", outcome: "fine" });
  };
  expect(never).toThrow();
});

test("every declaration is complete: prefix, unit in the name, rising buckets for histograms only", () => {
  for (const [name, spec] of Object.entries(METRICS)) {
    expect(name).toMatch(/^margay_[a-z_]+$/);
    expect(name.endsWith("_total"), name).toBe(spec.type === "counter");
    expect("buckets" in spec, name).toBe(spec.type === "histogram");
    if (spec.unit === "seconds" || spec.unit === "bytes") expect(name).toContain(spec.unit);
    if ("buckets" in spec) {
      const sorted = [...new Set<number>(spec.buckets)].sort((a, b) => a - b);
      expect(spec.buckets).toEqual(sorted);
    }
  }
});

test("a process that says who it is tells its counters and histograms from the start, at zero", async () => {
  const telling = { teller: "control-plane", models: ["nano"] } as const;
  const text = await createMetrics({ processMetrics: false, telling }).text();
  expect(text).toContain('margay_requests_total{model="nano",outcome="worker_lost"} 0');
  expect(text).toContain('margay_time_to_first_token_seconds_count{model="nano"} 0');
  expect(text).not.toContain("margay_prefill_tokens_total");
  const rank = await createMetrics({ processMetrics: false, telling: { teller: "decode", models: ["nano"] } }).text();
  expect(rank).toContain('margay_step_seconds_bucket{le="0.001",role="decode"} 0');
  expect(rank).toContain('margay_kv_transfer_bytes_total{role="decode",direction="received"} 0');
  expect(rank).not.toContain('role="prefill"');
  expect(rank).not.toContain("margay_requests_total");
});

test("vLLM's names tell the same samples", async () => {
  const metrics = createMetrics({ processMetrics: false, telling: { teller: "control-plane", models: ["nano"] } });
  metrics.observe("margay_time_to_first_token_seconds", { model: "nano" }, 0.3);
  metrics.count("margay_generated_tokens_total", { model: "nano" }, 12);
  const text = await metrics.text();
  expect(text).toContain("# TYPE vllm:time_to_first_token_seconds histogram");
  expect(text).toContain('vllm:time_to_first_token_seconds_bucket{le="0.5",model_name="nano"} 1');
  expect(text).toContain('vllm:generation_tokens_total{model_name="nano"} 12');
  const rank = createMetrics({ processMetrics: false, telling: { teller: "decode", models: ["nano"] } });
  rank.gauge("margay_kv_used_share", { role: "decode" }, 0.5);
  rank.count("margay_preemptions_total", {});
  expect(await rank.text()).toContain('vllm:kv_cache_usage_perc{model_name="nano",role="decode"} 0.5');
  expect(await rank.text()).toContain('vllm:num_preemptions_total{model_name="nano"} 1');
});
