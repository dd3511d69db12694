import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { MargayError } from "#protocol/errors.ts";
import { callerOf } from "../auth.ts";
import { parseRequest } from "../generation-host.ts";
import { refuse } from "../http-errors.ts";
import { createResponse } from "./create-response.ts";
import type { InputItem } from "./input-items.ts";
import { ItemsQuery, RetrieveQuery } from "./queries.ts";
import type { ResponsesHost } from "./responses-host.ts";
import { earlierItems, inputOf, loadResponse, noResponse } from "./stored-response.ts";
import { followResponse } from "./tail.ts";

/** Others may write to the log of a response that is being cancelled; so often at most. */
const MOST_TRIES = 100;

interface OfResponse {
  readonly Params: { readonly response_id: string };
}
type Asked = FastifyRequest<OfResponse>;

/** The Responses API. */
export function addResponseRoutes(app: FastifyInstance, host: ResponsesHost): void {
  const one = "/v1/responses/:response_id";
  app.post("/v1/responses", (request, reply) => createResponse(host, request, reply));
  app.get<OfResponse>(one, (request, reply) => retrieve(host, request, reply));
  app.delete<OfResponse>(one, (request) => remove(host, request));
  app.post<OfResponse>(`${one}/cancel`, (request) => cancel(host, request));
  app.get<OfResponse>(`${one}/input_items`, (request) => inputItems(host, request));
}

async function retrieve(host: ResponsesHost, request: Asked, reply: FastifyReply) {
  const query = parseRequest(RetrieveQuery, request.query);
  const id = request.params.response_id;
  if (query.stream !== true) {
    if (query.starting_after !== undefined) throw refuse("starting_after", "must be left out unless stream is true");
    return (await loadResponse(host, id, tenantOf(request))).maker.response;
  }
  await followResponse(host, request, reply, id, query.starting_after ?? -1);
  return;
}

async function remove(host: ResponsesHost, request: Asked) {
  const id = request.params.response_id;
  await loadResponse(host, id, tenantOf(request));
  await host.log.remove(id);
  return { id, object: "response", deleted: true } as const;
}

/** Ends a response in the background; one that is over stays as it is. */
async function cancel(host: ResponsesHost, request: Asked) {
  const id = request.params.response_id;
  for (let tries = 0; tries < MOST_TRIES; tries++) {
    const { maker, entries, lastSeq } = await loadResponse(host, id, tenantOf(request));
    if (!maker.response.background) {
      throw new MargayError("invalid_request", "Only a response with background true can be cancelled.", {
        param: "response_id",
      });
    }
    if (maker.state === "ended") return maker.response;
    const endedAt = Math.floor(host.clock.now() / 1000);
    const end = { status: "cancelled", endedAt, error: null, usage: null } as const;
    const none = new Int32Array(0);
    const entry = { number: entries.at(-1)!.number + 1, writer: host.log.gatewayId, record: null, end };
    if ((await host.log.append(id, lastSeq, { ...entry, tokens: none, sizes: none })) === null) continue;
    maker.end(end);
    await host.log.unmark(id);
    return maker.response;
  }
  throw noResponse();
}

/** The items that a response answers, those of the conversation before it included. */
async function inputItems(host: ResponsesHost, request: Asked) {
  const { limit = 20, order = "desc", after } = parseRequest(ItemsQuery, request.query);
  const id = request.params.response_id;
  const { record } = await loadResponse(host, id, tenantOf(request));
  const before = record.previous === null ? [] : await earlierItems(host, record.previous, tenantOf(request));
  const all = [...before, ...inputOf(record)].map((item, i) => listed(item, id, i));
  if (order === "desc") all.reverse();
  const from = after === undefined ? 0 : all.findIndex((item) => item.id === after) + 1;
  if (from === 0 && after !== undefined) throw refuse("after", "must be the id of an item of this response");
  const data = all.slice(from, from + limit);
  const ends = { first_id: data[0]?.id ?? null, last_id: data.at(-1)?.id ?? null };
  return { object: "list", data, ...ends, has_more: from + data.length < all.length } as const;
}

const PREFIXES: Readonly<Record<InputItem["type"], string>> = {
  ...{ message: "msg", function_call: "fc", function_call_output: "fco", reasoning: "rs" },
};

/** An item of a request with what the API's lists say of every item: its id, its parts and its status. */
function listed(item: InputItem, response: string, place: number) {
  const own = `${PREFIXES[item.type]}_${response.replace(/^resp_/, "")}i${place.toString(16)}`;
  const id = item.id ?? own;
  const status = item.status ?? "completed";
  if (item.type !== "message") return { ...item, id, status };
  const type = item.role === "assistant" ? ("output_text" as const) : ("input_text" as const);
  const parts = typeof item.content === "string" ? [{ text: item.content }] : item.content;
  const rest = item.role === "assistant" ? { annotations: [], logprobs: [] } : {};
  return { ...item, id, status, content: parts.map(({ text }) => ({ type, text, ...rest })) };
}

function tenantOf(request: FastifyRequest): string {
  return callerOf(request).tenant.name;
}
