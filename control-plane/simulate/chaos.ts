import type { ServedModel } from "../chat/served-model.ts";
import { type ExpectedAnswer, expectedAnswer } from "./expected-answer.ts";
import { scheduleFaults } from "./faults.ts";
import { checkAnswer, checkCounts, checkEngines, checkText, heldIn, InvariantBroken } from "./invariants.ts";
import type { Scenario } from "./scenario.ts";
import { type Call, startCall } from "./sim-client.ts";
import { REQUEST_MS, SimWorld, type WorldOptions } from "./sim-world.ts";

/** How a scenario went. */
export interface ChaosResult {
  readonly broken: InvariantBroken | null;
  readonly requests: number;
  /** How the requests ended: `ok`, `left`, `broken` (their control plane died), or the code of a failure. */
  readonly ends: Readonly<Record<string, number>>;
  readonly events: number;
  readonly virtualMs: number;
  /** What happened, line by line, where that was kept. */
  readonly history: readonly string[];
}

export interface ChaosOptions {
  readonly model: ServedModel;
  readonly calm?: boolean;
  readonly planted?: WorldOptions["planted"];
  /** Keeps what happened. */
  readonly record?: boolean;
}

/** Nothing may be held so long after the last answer: orphans wait 15 s for their owner, reservations for their deadline. */
const RELEASED_MS = 240_000;

/** Runs a scenario to its end, or until an invariant breaks. Equal scenarios go equally, event by event. */
export async function runScenario(scenario: Scenario, options: ChaosOptions): Promise<ChaosResult> {
  const history: string[] = [];
  const record = options.record === true;
  const note = (what: () => string): void => {
    if (record) history.push(`${world.time.nowMs.toFixed(2).padStart(10)}  ${what()}`);
  };
  const world: SimWorld = new SimWorld(scenario, {
    ...{ model: options.model, planted: options.planted ?? {}, note, logs: record },
  });
  const calls: Call[] = [];
  let broken: InvariantBroken | null = null;
  try {
    await play(world, scenario, options, calls, note);
  } catch (error) {
    const thrown = error instanceof Error ? (error.stack ?? error.message) : String(error);
    broken = error instanceof InvariantBroken ? error : new InvariantBroken("nothing throws", thrown);
  }
  await world.close();
  const ends: Record<string, number> = {};
  for (const { answer } of calls) {
    const end = answer?.kind === "error" ? answer.code : (answer?.kind ?? "none");
    ends[end] = (ends[end] ?? 0) + 1;
  }
  const { ran: events, nowMs: virtualMs } = world.time;
  return { broken, requests: calls.length, ends, events, virtualMs, history };
}

async function play(
  world: SimWorld,
  scenario: Scenario,
  options: ChaosOptions,
  calls: Call[],
  note: (what: () => string) => void,
): Promise<void> {
  const { time, controlPlanes } = world;
  let fault: unknown = null;
  const check = (claim: () => void): void => {
    try {
      claim();
    } catch (error) {
      fault ??= error;
    }
  };
  const afterEach = (): void => {
    if (fault !== null) throw fault;
    checkEngines(world);
  };
  await world.start();
  scheduleFaults(world, scenario, note);
  let answered = 0;
  let lastMs = 0;
  for (const request of scenario.requests) {
    lastMs = Math.max(lastMs, request.atMs);
    time.at(request.atMs, () => {
      const expected: ExpectedAnswer = expectedAnswer(options.model, request);
      const gateway = request.gateway % controlPlanes.length;
      note(() => `request ${request.number} to gateway-${gateway}: ${request.prompt.length}+${request.maxTokens}`);
      const call = startCall(
        { request, gateway, stop: expected.stop },
        time,
        (connection) => world.connect(gateway, connection),
        {
          text: (one) => check(() => checkText(one, expected)),
          answer(one) {
            answered++;
            note(() => `answer ${request.number}: ${JSON.stringify(one.answer)}`);
            check(() =>
              checkAnswer(one, expected, {
                calm: options.calm === true,
                orphaned: controlPlanes[gateway]!.thread.dead,
                frozenMs: frozenSince(scenario, one.sentMs),
              }),
            );
          },
        },
      );
      calls.push(call);
      if (request.leavesAfterMs !== null) time.after(request.leavesAfterMs, () => call.leave());
    });
  }
  const all = (): boolean => answered === scenario.requests.length;
  await time.run(lastMs + REQUEST_MS + frozenSince(scenario, 0) + 2_000, all, afterEach);
  if (!all()) {
    const none = calls.find(({ answer }) => answer === null);
    throw new InvariantBroken("answers", `request ${none?.request.number} has none at its deadline`);
  }
  await time.run(Math.max(time.nowMs, ...scenario.faults.map(({ atMs }) => atMs)) + 1, () => false, afterEach);
  if (!(await time.run(time.nowMs + RELEASED_MS, () => time.ran % 50 === 0 && heldIn(world).length === 0, afterEach))) {
    throw new InvariantBroken("everything is given back", heldIn(world).join("; "));
  }
  for (const [number, one] of controlPlanes.entries()) if (!one.thread.dead) await checkCounts(number, one, calls);
}

/** How long a control plane may have stood still since then, all its freezes together. */
function frozenSince({ faults }: Scenario, sinceMs: number): number {
  const freezes = faults.filter((one) => one.kind === "gateway-freeze");
  return freezes.reduce((sum, { atMs, ms }) => sum + (atMs + ms > sinceMs ? ms : 0), 0);
}
