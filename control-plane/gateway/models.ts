import type { FastifyInstance } from "fastify";
import type { ServedModel } from "../chat/served-model.ts";
import { mayUse } from "../tenancy/caller.ts";
import { callerOf, requireModel } from "./auth.ts";
import { findModel } from "./generation-host.ts";

/** What is served, as far as the caller may use it. */
export function addModelRoutes(app: FastifyInstance, models: ReadonlyMap<string, ServedModel>): void {
  app.get("/v1/models", (request) => {
    const caller = callerOf(request);
    return modelList([...models.values()].filter((model) => mayUse(caller, model.name)));
  });
  app.get<{ Params: { "*": string } }>("/v1/models/*", (request) => {
    const model = findModel(models, request.params["*"]);
    requireModel(callerOf(request), model.name);
    return modelObject(model);
  });
}

/** One entry of `GET /v1/models`. */
function modelObject(model: ServedModel) {
  return {
    id: model.name,
    object: "model",
    created: model.created,
    owned_by: "margay",
    max_model_len: model.contextLength,
  } as const;
}

/** `GET /v1/models`. */
function modelList(models: readonly ServedModel[]) {
  return { object: "list", data: models.map(modelObject) } as const;
}
