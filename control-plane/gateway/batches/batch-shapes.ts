import { z } from "zod";
import { BATCH_ENDPOINTS } from "#protocol/batch-entry.ts";
import { ExpiresAfter, pageQuery } from "../files/file-shapes.ts";
import { must } from "../must.ts";
import { Metadata } from "../responses/request-schema.ts";

/** Longest completion window, in hours. */
export const MOST_HOURS = 168;

const windowRule = must(`be a number of hours from "1h" to "${MOST_HOURS}h", usually "24h"`);

/** `POST /v1/batches`. Unknown fields are ignored; null means the same as a missing field. */
export const BatchRequest = z.object({
  input_file_id: z.string(must("be the id of a file with purpose batch")),
  endpoint: z.literal(BATCH_ENDPOINTS, must(`be one of ${BATCH_ENDPOINTS.join(", ")}`)),
  completion_window: z
    .string(windowRule)
    .regex(/^[1-9]\d{0,2}h$/, windowRule)
    .refine((text) => Number.parseInt(text, 10) <= MOST_HOURS, windowRule),
  metadata: Metadata.nullish(),
  output_expires_after: ExpiresAfter.nullish().meta({ description: "Never longer than the server keeps files." }),
});

/** The query of `GET /v1/batches`. */
export const BatchesQuery = z.object(pageQuery(100, 20));

/** What has not happened has no field. */
const moment = z.int().optional();

export const BatchResponse = z.strictObject({
  id: z.string(),
  object: z.literal("batch"),
  endpoint: z.literal(BATCH_ENDPOINTS),
  errors: z
    .strictObject({
      object: z.literal("list"),
      data: z.array(
        z.strictObject({
          code: z.string(),
          message: z.string(),
          param: z.string().nullable(),
          line: z.int().nullable(),
        }),
      ),
    })
    .optional(),
  input_file_id: z.string(),
  completion_window: z.string(),
  status: z.enum([
    ...(["validating", "failed", "in_progress", "finalizing", "completed"] as const),
    ...(["expired", "cancelling", "cancelled"] as const),
  ]),
  output_file_id: z.string().optional(),
  error_file_id: z.string().optional(),
  created_at: z.int(),
  in_progress_at: moment,
  expires_at: z.int(),
  finalizing_at: moment,
  completed_at: moment,
  failed_at: moment,
  expired_at: moment,
  cancelling_at: moment,
  cancelled_at: moment,
  request_counts: z.strictObject({ total: z.int().min(0), completed: z.int().min(0), failed: z.int().min(0) }),
  metadata: z.record(z.string(), z.string()).nullable(),
});
export type BatchResponse = z.infer<typeof BatchResponse>;

export const BatchListResponse = z.strictObject({
  object: z.literal("list"),
  data: z.array(BatchResponse),
  first_id: z.string().nullable(),
  last_id: z.string().nullable(),
  has_more: z.boolean(),
});
