import type { FastifyInstance, FastifyRequest } from "fastify";
import { MargayError } from "#protocol/errors.ts";
import type { Random } from "#service/clock.ts";
import { callerOf } from "../auth.ts";
import { page } from "../files/file-shapes.ts";
import { noFile, timedId } from "../files/file-store.ts";
import { parseRequest } from "../generation-host.ts";
import { refuse } from "../http-errors.ts";
import { placeOf } from "./batch-log.ts";
import type { BatchHost } from "./batch-run.ts";
import { BatchesQuery, BatchRequest, type BatchResponse } from "./batch-shapes.ts";
import { type BatchState, batchState, stateAfter } from "./batch-state.ts";
import type { Batches } from "./batches.ts";

/** What the batch API is given. */
export interface BatchRoutesHost extends BatchHost {
  readonly batches: Batches;
  readonly random: Random;
}

/** Others may write to the log of a batch that is being cancelled; so often at most. */
const MOST_TRIES = 100;

interface OfBatch {
  readonly Params: { readonly batch_id: string };
}
type Asked = FastifyRequest<OfBatch>;

/** The batch API. */
export function addBatchRoutes(app: FastifyInstance, host: BatchRoutesHost): void {
  const one = "/v1/batches/:batch_id";
  app.post("/v1/batches", (request) => create(host, request));
  app.get("/v1/batches", (request) => list(host, request));
  app.get<OfBatch>(one, async (request) => batchObject(host, request.params.batch_id, await load(host, request)));
  app.post<OfBatch>(`${one}/cancel`, (request) => cancel(host, request));
}

async function create(host: BatchRoutesHost, request: FastifyRequest): Promise<BatchResponse> {
  const { files, clock, random, batches } = host;
  const body = parseRequest(BatchRequest, request.body);
  const { tenant, keyDigest } = callerOf(request);
  const nowMs = clock.now();
  const input = await files.find(tenant.name, body.input_file_id, nowMs);
  if (input === null) throw noFile("input_file_id");
  if (input.purpose !== "batch") throw refuse("input_file_id", "must be a file with purpose batch");
  const createdAt = Math.floor(nowMs / 1000);
  const id = `batch_${timedId(nowMs, random)}`;
  const life = Math.floor(files.limits.maxAgeMs / 1000);
  await batches.keep(id, {
    ...{ tenant: tenant.name, keyDigest, endpoint: body.endpoint, inputFile: body.input_file_id },
    outputFile: `file-${timedId(nowMs, random)}`,
    errorFile: `file-${timedId(nowMs, random)}`,
    completionWindow: body.completion_window,
    metadata: body.metadata ?? null,
    expiresAt: createdAt + Number.parseInt(body.completion_window, 10) * 3_600,
    outputsExpireAt: createdAt + Math.min(body.output_expires_after?.seconds ?? life, life),
  });
  const state = batchState(await host.log.read(placeOf(tenant.name, id), 0));
  if (state === null) throw noBatch();
  return await batchObject(host, id, state);
}

/** Throws `not_found`, for the batches of others as well. */
async function load(host: BatchRoutesHost, request: Asked): Promise<BatchState> {
  const id = request.params.batch_id;
  const known = /^batch_[0-9a-f]{24}$/.test(id);
  const place = placeOf(callerOf(request).tenant.name, id);
  const state = known ? batchState(await host.log.read(place, 0)) : null;
  if (state === null) throw noBatch();
  return state;
}

async function list(host: BatchRoutesHost, request: FastifyRequest) {
  const { after, limit = 20 } = parseRequest(BatchesQuery, request.query);
  const tenant = callerOf(request).tenant.name;
  const ids = [...(await host.log.ids(placeOf(tenant, "").tenant))].reverse();
  if (after !== undefined && !ids.includes(after)) throw refuse("after", "must be the id of one of the batches");
  const later = ids.slice(after === undefined ? 0 : ids.indexOf(after) + 1);
  const found = await Promise.all(
    later.slice(0, limit).map(async (id) => {
      const state = batchState(await host.log.read(placeOf(tenant, id), 0));
      return state === null ? [] : [await batchObject(host, id, state)];
    }),
  );
  return page(found.flat(), later.length > limit);
}

async function cancel(host: BatchRoutesHost, request: Asked): Promise<BatchResponse> {
  const id = request.params.batch_id;
  const place = placeOf(callerOf(request).tenant.name, id);
  for (let tries = 0; tries < MOST_TRIES; tries++) {
    const state = await load(host, request);
    if (state.status === "cancelled" || state.status === "cancelling") return await batchObject(host, id, state);
    if (state.endedAt !== null) throw refuse("batch_id", `must be of a batch that is not over; it is ${state.status}`);
    const entry = await host.log.append(place, state.lastSeq, { kind: "cancelling" });
    if (entry !== null) return await batchObject(host, id, stateAfter(state, entry));
  }
  throw new MargayError("bus_unavailable");
}

async function batchObject({ files }: BatchHost, id: string, state: BatchState): Promise<BatchResponse> {
  const { record, status, endedAt } = state;
  const counts = state.counts ?? (await countsOf(files, state));
  const endedAs = (as: BatchState["status"]) => (status === as ? endedAt : null);
  const told = state.faults.map(({ code, message, param, line }) => ({ code, message, param, line }));
  return {
    ...{ id, object: "batch", endpoint: record.endpoint },
    ...{ input_file_id: record.inputFile, completion_window: record.completionWindow, status },
    ...{ created_at: state.createdAt, expires_at: record.expiresAt },
    ...given({
      errors: told.length === 0 ? null : { object: "list" as const, data: told },
      output_file_id: endedAt !== null && counts.completed > 0 ? record.outputFile : null,
      error_file_id: endedAt !== null && counts.failed > 0 ? record.errorFile : null,
      ...{ in_progress_at: state.begunAt, finalizing_at: state.finalizingAt, completed_at: endedAs("completed") },
      ...{ failed_at: endedAs("failed"), expired_at: endedAs("expired") },
      ...{ cancelling_at: state.cancellingAt, cancelled_at: endedAs("cancelled") },
    }),
    request_counts: { total: state.total ?? 0, ...counts },
    metadata: record.metadata,
  };
}

/** The fields that are not null. */
function given<T extends object>(fields: T): { [K in keyof T]?: Exclude<T[K], null> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null)) as ReturnType<
    typeof given<T>
  >;
}

/** Of a batch that is under way. */
async function countsOf(files: BatchHost["files"], { record, total }: BatchState) {
  if (total === null) return { completed: 0, failed: 0 };
  const [output, errors] = await Promise.all([
    files.lastPart(record.tenant, record.outputFile),
    files.lastPart(record.tenant, record.errorFile),
  ]);
  return { completed: output?.value.answered ?? 0, failed: errors?.value.answered ?? 0 };
}

function noBatch(): MargayError {
  return new MargayError("not_found", "There is no batch with this id; it may be too old.", { param: "batch_id" });
}
