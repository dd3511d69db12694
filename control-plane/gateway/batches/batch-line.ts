import { z } from "zod";
import type { BatchFault, BatchRecord } from "#protocol/batch-entry.ts";
import { must } from "../must.ts";
import type { InputLine } from "./input-lines.ts";

/** Longest `custom_id`. */
const MAX_ID = 512;

const idRule = must(`be a string of 1 to ${MAX_ID} characters`);

/** One line of a batch's input. */
export const BatchLine = z.object({
  custom_id: z.string(idRule).min(1, idRule).max(MAX_ID, idRule),
  method: z.literal("POST", must('be "POST"')),
  url: z.string(must("be the endpoint of the batch")),
  body: z.record(z.string(), z.unknown(), must("be an object")),
});
export type BatchLine = z.infer<typeof BatchLine>;

type Read = { readonly line: BatchLine } | { readonly fault: BatchFault };

/** Reads a line, or says what is wrong with it. */
export function readLine({ text, number }: InputLine, endpoint: BatchRecord["endpoint"]): Read {
  const fault = (code: string, message: string, param: string | null = null): Read => ({
    fault: { code, message, param, line: number },
  });
  if (text === null) return fault("line_too_long", "The line is longer than a request may be.");
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return fault("invalid_json_line", "The line is not valid JSON.");
  }
  const parsed = BatchLine.safeParse(json);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    const param = issue?.path[0] === undefined ? null : String(issue.path[0]);
    if (param === null) return fault("invalid_json_line", "The line must be a JSON object.");
    return fault("invalid_line", `${param} ${issue!.message}.`, param);
  }
  if (parsed.data.url !== endpoint)
    return fault("mismatched_url", `url must be ${endpoint}, as the batch says.`, "url");
  return { line: parsed.data };
}

/** What became of a line. */
export type Outcome =
  | { readonly kind: "answered"; readonly status: number; readonly requestId: string; readonly body: unknown }
  | { readonly kind: "unanswered"; readonly code: string; readonly message: string };

/** Whether the line belongs with those that went well. */
export function wentWell(outcome: Outcome): boolean {
  return outcome.kind === "answered" && outcome.status < 300;
}

/** A line of an output or error file, in OpenAI's form. */
export function outcomeLine(id: string, customId: string, outcome: Outcome): string {
  const told =
    outcome.kind === "answered"
      ? { response: { status_code: outcome.status, request_id: outcome.requestId, body: outcome.body }, error: null }
      : { response: null, error: { code: outcome.code, message: outcome.message } };
  return `${JSON.stringify({ id, custom_id: customId, ...told })}\n`;
}
