import { MargayError } from "#protocol/errors.ts";
import type { ResponseEntry, ResponseRecord } from "#protocol/response-entry.ts";
import { MAX_MESSAGES } from "../../chat/messages.ts";
import type { ServedModel } from "../../chat/served-model.ts";
import { refuse } from "../http-errors.ts";
import { InputItem } from "./input-items.ts";
import type { ResponseLog } from "./response-log.ts";
import { ResponseMaker } from "./response-maker.ts";
import type { OutputItem } from "./response-object.ts";

/** Most turns of a conversation that is kept by `previous_response_id`. */
const MAX_TURNS = 1_000;

/** What reading stored responses takes. */
export interface StoredHost {
  readonly log: ResponseLog;
  readonly models: ReadonlyMap<string, ServedModel>;
}

/** A stored response, as far as it has come. */
export interface StoredResponse {
  readonly record: ResponseRecord;
  readonly entries: readonly ResponseEntry[];
  readonly lastSeq: number;
  readonly maker: ResponseMaker;
  readonly model: ServedModel;
}

/** Throws `not_found`, for the responses of others as well. */
export async function loadResponse(
  { log, models }: StoredHost,
  id: string,
  tenant: string,
  tell = false,
): Promise<StoredResponse> {
  const found = /^resp_[0-9a-f]{24}$/.test(id) ? await log.read(id, 0) : [];
  const record = found[0]?.value.record ?? null;
  const model = record === null ? undefined : models.get(record.model);
  if (record === null || model === undefined || record.share.tenant !== tenant) throw noResponse();
  const maker = ResponseMaker.of(model, record, tell);
  for (const { value } of found) maker.replay(value);
  return { record, entries: found.map(({ value }) => value), lastSeq: found.at(-1)!.seq, maker, model };
}

export function noResponse(): MargayError {
  return new MargayError("not_found", "There is no response with this id; it may have been deleted or be too old.", {
    param: "response_id",
  });
}

/** The conversation up to a response's end, as input of the next. Throws `invalid_request` naming `previous_response_id`. */
export async function earlierItems(host: StoredHost, id: string, tenant: string): Promise<readonly InputItem[]> {
  const turns: (readonly InputItem[])[] = [];
  let items = 0;
  for (let next: string | null = id; next !== null; ) {
    if (turns.length >= MAX_TURNS) throw refuse("previous_response_id", `must follow at most ${MAX_TURNS} responses`);
    const { record, maker }: StoredResponse = await loadResponse(host, next, tenant).catch((error: MargayError) => {
      throw error.code === "not_found" ? gone() : error;
    });
    const { status, output } = maker.response;
    if (status !== "completed" && status !== "incomplete") {
      throw refuse("previous_response_id", `must be of a response that came to its end: this one is ${status}`);
    }
    const turn = [...inputOf(record), ...output.map(asInput)];
    items += turn.length;
    if (items > MAX_MESSAGES) throw refuse("previous_response_id", `must follow at most ${MAX_MESSAGES} items`);
    turns.push(turn);
    next = record.previous;
  }
  return turns.reverse().flat();
}

/** What a response's own request said. */
export function inputOf(record: ResponseRecord): readonly InputItem[] {
  return JSON.parse(record.input) as readonly InputItem[];
}

/** An item of an answer as a client would send it back. */
function asInput(item: OutputItem): InputItem {
  return InputItem.parse(item);
}

function gone(): MargayError {
  const rule = "previous_response_id must be of a stored response; this one may have been deleted or be too old.";
  return new MargayError("not_found", rule, { param: "previous_response_id" });
}
