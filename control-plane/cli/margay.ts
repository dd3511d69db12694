import { parseArgs } from "node:util";
import { drain } from "./drain.ts";
import { explain } from "./explain.ts";
import { explainRequest } from "./explain-request.ts";
import { createKey } from "./keys.ts";
import { send } from "./send.ts";
import { status } from "./status.ts";
import { MOST_TRACE_SECONDS, trace } from "./trace.ts";
import { up } from "./up.ts";

/** What plans and traces are for, unless they say. */
const PLANNED_MODEL = "longcat-flash";

const USAGE = `margay up                         run everything on this machine: NATS, control plane, workers
margay status [--watch | --json]  workers, pages and requests
margay explain [--json]           why there are as many workers as there are
margay explain REQUEST [--json]   what became of a request: where it went and why, what each phase took
margay send [options] QUESTION    ask one question and print the answer as it comes
    --model NAME  --think | --no-think  --max-tokens N  --temperature T
margay drain WORKER               let a worker finish its requests, then stop it
margay keys create --tenant NAME  make an API key: the key, and the line for the keys file
    --name NAME
margay trace [FILE]               record what the workers do and draw it
    --seconds N
margay bench [options]            put an OpenAI-compatible server under load; percentiles and goodput
    --url URL  --model NAME  --clients N  --requests N  --prompt-tokens N  --max-tokens N  --exact
    --rate R                      requests that come by themselves, so many a second; else each client asks when answered
    --trace FILE  --speed X  --shrink N   a Mooncake or Azure trace, faster, lengths divided
    --ttft MS  --tpot MS  --out FILE      goals of goodput; FILE.json and FILE.svg
margay simulate --chaos           break a simulated system under virtual time, from seeds
    --seeds N  --requests N  --seed FIRST
margay simulate --trace FILE      play a trace on a modelled fleet under the planner, and draw it
    --model NAME  --gpu NAME  --gpus N  --group-gpus N  --copies N  --ttft MS  --tpot MS  --cold-start SECONDS
    --compare  --out FILE         against Knative's and the pod autoscaler's rules, each at its best; FILE may
                                  be a folder of the public traces, for all of them and a table
margay plan                       how to divide GPUs between prefill and decoding
    --model NAME  --gpu NAME  --gpus N  --trace FILE  --ttft MS  --tpot MS

Settings are MARGAY_* environment variables; README.md lists them.
`;

/** A mistake in how a command was called: printed as one sentence, exit code 2. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

async function main(argv: readonly string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: {
      help: { type: "boolean", short: "h", default: false },
      watch: { type: "boolean", short: "w", default: false },
      json: { type: "boolean", default: false },
      model: { type: "string" },
      think: { type: "boolean", default: false },
      "no-think": { type: "boolean", default: false },
      "max-tokens": { type: "string" },
      temperature: { type: "string" },
      seconds: { type: "string" },
      tenant: { type: "string" },
      name: { type: "string" },
      chaos: { type: "boolean", default: false },
      trace: { type: "string" },
      gpu: { type: "string", default: "h800" },
      gpus: { type: "string", default: "128" },
      "group-gpus": { type: "string", default: "16" },
      copies: { type: "string", default: "1" },
      ttft: { type: "string", default: "4000" },
      tpot: { type: "string", default: "50" },
      "cold-start": { type: "string", default: "60" },
      compare: { type: "boolean", default: false },
      out: { type: "string" },
      seed: { type: "string" },
      seeds: { type: "string" },
      requests: { type: "string" },
      url: { type: "string" },
      clients: { type: "string", default: "8" },
      rate: { type: "string" },
      speed: { type: "string", default: "1" },
      shrink: { type: "string", default: "1" },
      "prompt-tokens": { type: "string", default: "256" },
      exact: { type: "boolean", default: false },
    },
  });
  const [command, ...rest] = positionals;
  if (values.help || command === undefined) {
    process.stdout.write(USAGE);
    return values.help ? 0 : 2;
  }
  if (rest.length > 0 && (command === "up" || command === "status"))
    throw new UsageError(`${command} takes no argument`);
  if (values.think && values["no-think"]) throw new UsageError("--think and --no-think exclude each other");
  switch (command) {
    case "up":
      return up();
    case "status":
      return status({ watch: values.watch, json: values.json });
    case "explain":
      if (rest.length > 1) throw new UsageError("explain takes the id of one request, or none");
      return rest[0] === undefined ? explain(values.json) : explainRequest(rest[0], values.json);
    case "send": {
      const question = rest.join(" ");
      if (question === "") throw new UsageError("send needs a question");
      return send(question, {
        model: values.model ?? null,
        thinking: values.think ? true : values["no-think"] ? false : null,
        maxTokens: numeric("--max-tokens", values["max-tokens"]),
        temperature: numeric("--temperature", values.temperature),
      });
    }
    case "drain":
      if (rest.length !== 1) throw new UsageError("drain needs the name of one worker");
      return drain(rest[0]!);
    case "keys":
      if (rest.length !== 1 || rest[0] !== "create") throw new UsageError("keys knows `keys create`");
      if (values.tenant === undefined) throw new UsageError("keys create needs --tenant NAME");
      return createKey({ tenant: values.tenant, name: values.name ?? null });
    case "trace": {
      if (rest.length > 1) throw new UsageError("trace writes to one file");
      const seconds = numeric("--seconds", values.seconds) ?? 1;
      if (!(seconds > 0 && seconds <= MOST_TRACE_SECONDS))
        throw new UsageError(`--seconds must be more than 0 and at most ${MOST_TRACE_SECONDS}`);
      return trace({ seconds, file: rest[0] ?? "margay-trace" });
    }
    case "bench": {
      if (rest.length > 0) throw new UsageError("bench takes no argument");
      if (values.rate !== undefined && values.trace !== undefined)
        throw new UsageError("--rate and --trace exclude each other");
      const { bench } = await import("./bench.ts");
      const closed = values.rate === undefined && values.trace === undefined;
      return bench({
        ...{ url: values.url ?? null, model: values.model ?? null, exact: values.exact, out: values.out ?? null },
        load:
          values.trace !== undefined
            ? {
                ...{ kind: "trace", file: values.trace },
                ...{ speed: above0("--speed", values.speed), shrink: above0("--shrink", values.shrink) },
              }
            : closed
              ? { kind: "closed" }
              : { kind: "open", perSecond: above0("--rate", values.rate!) },
        // Whoever comes by himself does not wait for others' answers.
        clients: closed ? whole("--clients", values.clients) : Math.max(1000, whole("--clients", values.clients)),
        requests: whole("--requests", values.requests ?? "100"),
        promptTokens: whole("--prompt-tokens", values["prompt-tokens"]),
        maxTokens: whole("--max-tokens", values["max-tokens"] ?? "64"),
        goals: { ttftMs: whole("--ttft", values.ttft), tpotMs: whole("--tpot", values.tpot) },
      });
    }
    case "simulate": {
      if (rest.length > 0 || values.chaos === (values.trace !== undefined))
        throw new UsageError("simulate needs either --chaos or --trace FILE");
      if (values.trace !== undefined) {
        const { simulateTrace } = await import("./simulate-trace.ts");
        return simulateTrace({
          ...{
            trace: values.trace,
            model: values.model ?? PLANNED_MODEL,
            gpu: values.gpu,
            file: values.out ?? "margay-simulation.svg",
          },
          gpus: whole("--gpus", values.gpus),
          groupGpus: whole("--group-gpus", values["group-gpus"]),
          copies: whole("--copies", values.copies),
          ttftGoalMs: whole("--ttft", values.ttft),
          tpotGoalMs: whole("--tpot", values.tpot),
          coldStartMs: 1000 * whole("--cold-start", values["cold-start"]),
          compare: values.compare,
        });
      }
      const seeds = positive("--seeds", values.seeds) ?? 200;
      const requests = positive("--requests", values.requests) ?? 100 * seeds;
      const { simulateChaos } = await import("./simulate.ts");
      return simulateChaos({ firstSeed: positive("--seed", values.seed) ?? 1, seeds, requests });
    }
    case "plan": {
      if (rest.length > 0) throw new UsageError("plan takes no argument");
      const { plan } = await import("./plan.ts");
      return plan({
        ...{ model: values.model ?? PLANNED_MODEL, gpu: values.gpu, trace: values.trace ?? null },
        gpus: whole("--gpus", values.gpus),
        ttftGoalMs: whole("--ttft", values.ttft),
        tpotGoalMs: whole("--tpot", values.tpot),
      });
    }
    default:
      throw new UsageError(`unknown command ${command}`);
  }
}

function numeric(option: string, value: string | undefined): number | null {
  if (value === undefined) return null;
  const parsed = Number(value);
  if (value.trim() === "" || !Number.isFinite(parsed)) throw new UsageError(`${option} must be a number`);
  return parsed;
}

function above0(option: string, value: string): number {
  const parsed = numeric(option, value)!;
  if (parsed <= 0) throw new UsageError(`${option} must be more than 0`);
  return parsed;
}

function whole(option: string, value: string): number {
  return positive(option, value)!;
}

function positive(option: string, value: string | undefined): number | null {
  const parsed = numeric(option, value);
  if (parsed !== null && (!Number.isInteger(parsed) || parsed < 1)) {
    throw new UsageError(`${option} must be a whole number of at least 1`);
  }
  return parsed;
}

// Whoever read the output has left (`| head`, a closed terminal): a command that only prints is done, `up` goes on serving.
process.stdout.on("error", () => process.exit(0));
process.stderr.on("error", () => {});
try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`margay: ${error instanceof Error ? error.message : String(error)}\n`);
  const usage = error instanceof UsageError || (error as { code?: string }).code?.startsWith("ERR_PARSE_ARGS");
  process.exitCode = usage ? 2 : 1;
}
