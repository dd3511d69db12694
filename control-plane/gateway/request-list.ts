import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { RequestListResponse } from "#protocol/timeline.ts";
import type { RecentWays, Way } from "../flow/way.ts";
import { callerOf } from "./auth.ts";
import { parseRequest } from "./generation-host.ts";
import { must } from "./must.ts";
import { retriesOf } from "./timeline.ts";

const MOST_LISTED = 100;
const limitRule = must(`be a whole number from 1 to ${MOST_LISTED}`);

/** What `GET /v1/requests` may be asked. */
export const RequestsQuery = z.strictObject({
  limit: z
    .string(limitRule)
    .regex(/^\d{1,3}$/, limitRule)
    .refine((text) => Number(text) >= 1 && Number(text) <= MOST_LISTED, limitRule)
    .optional(),
});

/** `GET /v1/requests`: of the latest requests of this process the sender's own. */
export function addRequestList(app: FastifyInstance, latest: RecentWays["latest"]): void {
  app.get("/v1/requests", (request): RequestListResponse => {
    const { limit } = parseRequest(RequestsQuery, request.query);
    const ways = latest(callerOf(request).tenant.name, Number(limit ?? 20));
    return { object: "list", data: ways.map(summary) };
  });
}

function summary(way: Way): RequestListResponse["data"][number] {
  const { beganMs, endedMs } = way;
  return {
    ...{ id: way.requestId, object: "request", model: way.model, created: beganMs / 1000 },
    outcome: way.outcome ?? "running",
    ...{ prompt_tokens: way.promptTokens, generated_tokens: way.generatedTokens },
    total_ms: endedMs === null ? null : Math.max(0, endedMs - beganMs),
    retries: retriesOf(way),
  };
}
