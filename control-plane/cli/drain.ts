import { WorkerId } from "#protocol/ids.ts";
import { DrainWorker, DrainWorkerReply } from "#protocol/operator.ts";
import { subjects } from "#protocol/subjects.ts";
import { operatorBus } from "./operator-bus.ts";

/** How long a worker gets to finish its requests. */
const GRACE_MS = 30_000;

/** Lets a worker finish its requests, then stops it. Returns the exit code. */
export async function drain(worker: string): Promise<number> {
  const workerId = WorkerId.safeParse(worker);
  if (!workerId.success) throw new Error(`${worker} is not the name of a worker; margay status lists them`);
  await using bus = await operatorBus();
  const message = { kind: "drain-worker", workerId: workerId.data, graceMs: GRACE_MS } as const;
  const reply = await bus.request(subjects.operatorDrain(), DrainWorker, message, DrainWorkerReply, GRACE_MS + 10_000);
  if (reply.kind === "refused") throw new Error(reply.detail);
  process.stdout.write(`${worker} is draining\n`);
  return 0;
}
