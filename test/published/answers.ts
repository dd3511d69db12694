import type Anthropic from "@anthropic-ai/sdk";
import type OpenAI from "openai";
import type { z } from "zod";
import type { BatchResponse } from "../../control-plane/gateway/batches/batch-shapes.ts";
import type { DeletedFile, FileResponse } from "../../control-plane/gateway/files/file-shapes.ts";
import type * as shapes from "../../control-plane/gateway/response-schema.ts";
import type { ResponseResponse, ResponseStreamEvent } from "../../control-plane/gateway/responses/shapes.ts";

/**
 * What our schemas allow an answer to be is what the clients' own types take it for: this need not run, it has to compile.
 * That answers keep to the schemas is tested where they are made.
 */

/** `output_text` is the client's own: it joins the texts of an answer it has read. */
type OnTheWire<T> = T extends { readonly response: OpenAI.Responses.Response }
  ? Omit<T, "response"> & { readonly response: Omit<OpenAI.Responses.Response, "output_text"> }
  : T;

export const published = {
  chatCompletion: (one: z.output<typeof shapes.ChatCompletionResponse>): OpenAI.ChatCompletion => one,
  chatChunk: (one: z.output<typeof shapes.ChatChunkResponse>): OpenAI.ChatCompletionChunk => one,
  completion: (one: z.output<typeof shapes.CompletionResponse>): OpenAI.Completion => one,
  model: (one: z.output<typeof shapes.ModelResponse>): OpenAI.Model => one,
  file: (one: z.output<typeof FileResponse>): OpenAI.FileObject => one,
  deletedFile: (one: z.output<typeof DeletedFile>): OpenAI.FileDeleted => one,
  batch: (one: z.output<typeof BatchResponse>): OpenAI.Batch => one,
  response: (one: z.output<typeof ResponseResponse>): Omit<OpenAI.Responses.Response, "output_text"> => one,
  responseEvent: (one: z.output<typeof ResponseStreamEvent>): OnTheWire<OpenAI.Responses.ResponseStreamEvent> => one,
  message: (one: z.output<typeof shapes.MessageResponse>): Anthropic.Message => one,
  tokenCount: (one: z.output<typeof shapes.TokenCountResponse>): Anthropic.MessageTokensCount => one,
};
