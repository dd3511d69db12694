import { TimelineResponse } from "#protocol/timeline.ts";
import { cliConfig } from "./config.ts";
import { runningSystem } from "./running-system.ts";

type Attempt = TimelineResponse["attempts"][number];

/** Prints what became of one request: where it went and why, what each phase took. Returns the exit code. */
export async function explainRequest(id: string, json: boolean): Promise<number> {
  const { apiKey } = cliConfig();
  const { url } = await runningSystem();
  const response = await fetch(`${url}/v1/requests/${encodeURIComponent(id)}/timeline`, {
    headers: apiKey === null ? {} : { authorization: `Bearer ${apiKey}` },
  });
  const body: unknown = await response.json();
  if (!response.ok) throw new Error((body as { error?: { message?: string } }).error?.message ?? `${response.status}`);
  const timeline = TimelineResponse.parse(body);
  process.stdout.write(json ? `${JSON.stringify(timeline)}\n` : describeRequest(timeline));
  return 0;
}

/** The timeline in words. */
export function describeRequest(one: TimelineResponse): string {
  const ends = one.total_ms === null ? "is under way" : `ended (${one.outcome}) after ${ms(one.total_ms)}`;
  const first = one.first_token_ms === null ? "no token yet" : `first token after ${ms(one.first_token_ms)}`;
  return [
    `${one.id}  ${one.model}  ${ends}, ${first}`,
    `  ${one.prompt_tokens} prompt tokens, ${one.cached_tokens} of them cached; ${one.generated_tokens} generated; ${one.retries} retries${one.trace_id === null ? "" : `; trace ${one.trace_id}`}`,
    ...one.attempts.flatMap(attemptLines),
    "",
  ].join("\n");
}

function attemptLines(attempt: Attempt): readonly string[] {
  const { prefill, decode, transfer } = attempt;
  return [
    `  attempt ${attempt.attempt}, at ${ms(attempt.at_ms)}: ${attempt.outcome}`,
    ...(decode === null ? ["    had no place"] : [`    decode  ${choice(decode)}`]),
    ...(decode === null
      ? []
      : [`    prefill ${prefill === null ? "by the decode rank: little of the prompt was missing" : choice(prefill)}`]),
    ...attempt.phases.map(
      ({ phase, at_ms, ms: took }) =>
        `    ${phase.padEnd(8)} ${ms(took).padStart(10)}  from ${ms(at_ms)}${phase === "transfer" && transfer !== null ? ` (${transfer.pages} pages, ${transfer.bytes} bytes)` : ""}`,
    ),
  ];
}

function choice(one: NonNullable<Attempt["decode"]>): string {
  return `${one.rank} (1 of ${one.out_of}: ${one.cached_tokens} tokens cached, ${one.requests} of ${one.max_requests} requests, ${one.pending_tokens} prompt tokens waiting)`;
}

function ms(value: number): string {
  return value < 10_000 ? `${value.toFixed(1)} ms` : `${(value / 1000).toFixed(2)} s`;
}
