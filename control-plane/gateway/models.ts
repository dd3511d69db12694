import type { ServedModel } from "../chat/served-model.ts";

/** One entry of `GET /v1/models`. */
export function modelObject(model: ServedModel) {
  return {
    id: model.name,
    object: "model",
    created: model.created,
    owned_by: "margay",
    max_model_len: model.contextLength,
  } as const;
}

/** `GET /v1/models`. */
export function modelList(models: readonly ServedModel[]) {
  return { object: "list", data: models.map(modelObject) } as const;
}
