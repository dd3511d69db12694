import type { FastifyReply, FastifyRequest } from "fastify";
import type { ServedModel } from "../chat/served-model.ts";
import type { Tenancy } from "../tenancy/tenancy.ts";
import { callerOf } from "./auth.ts";
import { requestIdOf } from "./generation-host.ts";

/**
 * Does what needs a model's tokenizer alone under the limits of its sender: it counts as a request, uses no tokens and
 * costs nothing. Rejects as `Tenancy.begin` does; the answer tells the limits either way.
 */
export async function underLimits<T>(
  tenancy: Tenancy,
  request: FastifyRequest,
  reply: FastifyReply,
  model: ServedModel,
  work: () => T | Promise<T>,
): Promise<T> {
  const what = { requestId: requestIdOf(request), model: model.name, inputTokens: 0 };
  const ticket = await tenancy.begin(callerOf(request), what, (limits) => void reply.headers(limits));
  reply.headers(ticket.headers);
  try {
    return await work();
  } finally {
    ticket.end();
    ticket.record(null);
  }
}
