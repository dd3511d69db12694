import type { Teller } from "#protocol/metric-tellers.ts";
import type { MetricName } from "#protocol/metrics.ts";

/** A second name of a metric. */
export interface MetricAlias {
  readonly name: `vllm:${string}`;
  readonly of: MetricName;
}

/**
 * Names that boards, autoscalers and endpoint pickers made for vLLM ask for. What a request meets is told by the control
 * plane it came to; what a rank holds, by the rank, whose running requests a monitor of both should drop: they are the
 * control plane's as well.
 */
const OF_CONTROL_PLANE: readonly MetricAlias[] = [
  { name: "vllm:num_requests_running", of: "margay_running_requests" },
  { name: "vllm:num_requests_waiting", of: "margay_waiting_requests" },
  { name: "vllm:time_to_first_token_seconds", of: "margay_time_to_first_token_seconds" },
  { name: "vllm:time_per_output_token_seconds", of: "margay_time_per_output_token_seconds" },
  { name: "vllm:inter_token_latency_seconds", of: "margay_time_per_output_token_seconds" },
  { name: "vllm:e2e_request_latency_seconds", of: "margay_request_seconds" },
  { name: "vllm:request_queue_time_seconds", of: "margay_queue_seconds" },
  { name: "vllm:prompt_tokens_total", of: "margay_prompt_tokens_total" },
  { name: "vllm:generation_tokens_total", of: "margay_generated_tokens_total" },
];

const OF_RANKS: readonly MetricAlias[] = [
  { name: "vllm:num_requests_running", of: "margay_worker_requests" },
  { name: "vllm:kv_cache_usage_perc", of: "margay_kv_used_share" },
  { name: "vllm:num_preemptions_total", of: "margay_preemptions_total" },
  { name: "vllm:iteration_tokens_total", of: "margay_batch_tokens" },
];

export function aliasesOf(teller: Teller): readonly MetricAlias[] {
  return teller === "control-plane" ? OF_CONTROL_PLANE : OF_RANKS;
}

/** Text of a metric under its alias; the label `model` becomes `model_name`, which a rank's own series lack and get. */
export function renamed(
  text: string,
  { name, of }: MetricAlias,
  { teller, models }: { readonly teller: Teller; readonly models: readonly string[] },
): string {
  const lines = text.split("\n").filter((line) => line !== "");
  return lines
    .map((line) => `${renamedLine(line, name, of, teller === "control-plane" ? null : models[0]!)}\n`)
    .join("");
}

function renamedLine(line: string, name: string, of: string, model: string | null): string {
  if (line.startsWith("#")) return line.replace(of, name);
  const sample = name + line.slice(of.length);
  if (model === null) return sample.replace(/([{,])model="/, '$1model_name="');
  const label = `model_name="${model.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
  return sample.includes("{") ? sample.replace("{", `{${label},`) : sample.replace(/ /, `{${label}} `);
}
