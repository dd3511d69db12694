import type { TLSSocket } from "node:tls";
import type { FastifyRequest } from "fastify";
import { MargayError } from "#protocol/errors.ts";
import type { RequestId } from "#protocol/ids.ts";
import type { Share } from "../flow/fair-queue.ts";
import { type Caller, mayUse, urgencyOf } from "../tenancy/caller.ts";
import type { Tenancy } from "../tenancy/tenancy.ts";
import type { OwnRequest, OwnRequests } from "./own-requests.ts";

/** Routes that anybody may use: they tell nothing of anybody's requests. All others need a key where keys are set. */
const OPEN_ROUTES: readonly string[] = [
  "/livez",
  "/readyz",
  "/metrics",
  "/openapi.json",
  "/docs",
  "/",
  "/console/:file",
];

const callers = new WeakMap<FastifyRequest, Caller>();
const own = new WeakMap<FastifyRequest, OwnRequest>();

/**
 * Finds out who sent the request: this server itself, or whoever has its key. Throws `invalid_api_key`, or `not_allowed`
 * where clients have to show a certificate and this one's does not hold.
 */
export function authenticate(
  tenancy: Tenancy,
  ownRequests: OwnRequests,
  request: FastifyRequest,
  certified: boolean,
): void {
  const announced = ownRequests.find(request.headers);
  if (announced !== null) {
    own.set(request, announced);
    callers.set(request, announced.caller);
    return;
  }
  const route = request.routeOptions.url;
  // A path that nobody answers is nobody's secret.
  if (route === undefined || OPEN_ROUTES.includes(route)) return;
  if (certified) checkCertificate(request.raw.socket as TLSSocket);
  callers.set(request, tenancy.identify(presentedKey(request)));
}

function checkCertificate({ authorized, authorizationError }: TLSSocket): void {
  if (authorized) return;
  const expired = String(authorizationError) === "CERT_HAS_EXPIRED";
  const fault = expired
    ? "The time of the client's certificate is over."
    : "Clients need a certificate that is trusted here.";
  throw new MargayError("not_allowed", fault);
}

/** Who sent the request: known once it was let in. */
export function callerOf(request: FastifyRequest): Caller {
  const caller = callers.get(request);
  if (caller === undefined) throw new MargayError("invalid_api_key");
  return caller;
}

/** The turn of a request among others: its tenant's weight, and the urgency that its `service_tier` asks for. */
export function shareOf(request: FastifyRequest): Share {
  const caller = callerOf(request);
  const tier = (request.body as { readonly service_tier?: unknown } | null | undefined)?.service_tier;
  const { name, weight } = caller.tenant;
  const asked = urgencyOf(caller, typeof tier === "string" ? tier : null);
  return { tenant: name, weight, urgency: own.get(request)?.urgency ?? asked };
}

/** The id under which the ledger keeps what a request used. */
export function chargedAs(request: FastifyRequest): RequestId {
  return own.get(request)?.chargedAs ?? (request.id as RequestId);
}

/** What says that nobody waits for the answer of a request of this server's own; null: its connection does. */
export function leavesBy(request: FastifyRequest): AbortSignal | null {
  return own.get(request)?.signal ?? null;
}

/** Refuses a body that names a model which its sender may not use. Throws `not_allowed`. */
export function checkModel(request: FastifyRequest): void {
  const model = (request.body as { readonly model?: unknown } | null | undefined)?.model;
  if (typeof model === "string") requireModel(callerOf(request), model);
}

/** Throws `not_allowed`. */
export function requireModel(caller: Caller, model: string): void {
  if (!mayUse(caller, model))
    throw new MargayError("not_allowed", "The API key does not allow this model.", { param: "model" });
}

/** `Authorization: Bearer KEY` as OpenAI's clients send it, or `x-api-key: KEY` as Anthropic's do. */
function presentedKey({ headers }: FastifyRequest): string | null {
  const bearer = /^Bearer +(\S+) *$/i.exec(headers.authorization ?? "")?.[1];
  if (bearer !== undefined) return bearer;
  const own = headers["x-api-key"];
  return typeof own === "string" && own !== "" ? own : null;
}
