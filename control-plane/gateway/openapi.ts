import { z } from "zod";
import { FleetResponse } from "#protocol/fleet-view.ts";
import { RequestListResponse, TimelineResponse } from "#protocol/timeline.ts";
import { BatchesQuery, BatchListResponse, BatchRequest, BatchResponse } from "./batches/batch-shapes.ts";
import { ChatRequest } from "./chat-schema.ts";
import { CompletionRequest } from "./completion-schema.ts";
import { DeletedFile, FileListResponse, FileResponse, FilesQuery, UploadForm } from "./files/file-shapes.ts";
import { CountTokensRequest, MessagesRequest } from "./messages-schema.ts";
import { RequestsQuery } from "./request-list.ts";
import {
  ChatChunkResponse,
  ChatCompletionResponse,
  CompletionChunkResponse,
  CompletionResponse,
  ErrorResponse,
  MessageErrorResponse,
  MessageResponse,
  ModelListResponse,
  ModelResponse,
  TokenCountResponse,
  UsageListResponse,
} from "./response-schema.ts";
import { ItemsQuery, RetrieveQuery } from "./responses/queries.ts";
import { ResponsesRequest } from "./responses/request-schema.ts";
import { DeletedResponse, InputItemList, ResponseResponse, ResponseStreamEvent } from "./responses/shapes.ts";
import { THINKERS_HEADER } from "./thinkers.ts";
import { DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse } from "./tokenization.ts";
import { UsageQuery } from "./usage.ts";

const SCHEMAS = {
  ChatRequest,
  CompletionRequest,
  MessagesRequest,
  CountTokensRequest,
  ResponsesRequest,
  Response: ResponseResponse,
  ResponseStreamEvent,
  DeletedResponse,
  InputItemList,
  UploadForm,
  File: FileResponse,
  FileList: FileListResponse,
  DeletedFile,
  BatchRequest,
  Batch: BatchResponse,
  BatchList: BatchListResponse,
  TokenizeRequest,
  Tokenized: TokenizeResponse,
  DetokenizeRequest,
  Detokenized: DetokenizeResponse,
  Message: MessageResponse,
  MessageError: MessageErrorResponse,
  ChatCompletion: ChatCompletionResponse,
  ChatCompletionChunk: ChatChunkResponse,
  Completion: CompletionResponse,
  CompletionChunk: CompletionChunkResponse,
  Model: ModelResponse,
  ModelList: ModelListResponse,
  TokenCount: TokenCountResponse,
  UsageList: UsageListResponse,
  Timeline: TimelineResponse,
  RequestList: RequestListResponse,
  Fleet: FleetResponse,
  Error: ErrorResponse,
} as const;

/** `GET /openapi.json`: OpenAPI 3.1, made from the schemas that requests are parsed with. */
export function openApiDocument(): object {
  const schemas = Object.entries(SCHEMAS).map(([name, schema]) => {
    const { $schema: _dialect, ...json } = z.toJSONSchema(schema, {
      io: "input",
      // Zod names the rule beside the pattern that says it; no reader knows the name.
      override: ({ jsonSchema }) => {
        if (jsonSchema.format === "starts_with") delete jsonSchema.format;
      },
    });
    return [name, json];
  });
  return {
    openapi: "3.1.0",
    info: {
      title: "Margay",
      version: "0.1.0",
      description: "Inference with OpenAI's HTTP API. Every answer carries `x-request-id`.",
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    paths: {
      "/v1/chat/completions": { post: generation("createChatCompletion", "Answer a conversation.", "Chat") },
      "/v1/completions": { post: generation("createCompletion", "Continue a text.", "") },
      "/v1/responses": {
        post: {
          ...read("createResponse", "Answer a conversation, in the form of OpenAI's Responses API.", {
            ...json("Response"),
            "text/event-stream": { schema: reference("ResponseStreamEvent") },
          }),
          parameters: [MAX_WAIT],
          requestBody: { required: true, content: json("ResponsesRequest") },
        },
      },
      "/v1/responses/{response_id}": {
        parameters: [inPath("response_id")],
        get: {
          ...read("getResponse", "A stored response, or once more the events of its stream.", {
            ...json("Response"),
            "text/event-stream": { schema: reference("ResponseStreamEvent") },
          }),
          parameters: inQuery(RetrieveQuery),
        },
        delete: read("deleteResponse", "Forgets a stored response.", json("DeletedResponse")),
      },
      "/v1/responses/{response_id}/cancel": {
        parameters: [inPath("response_id")],
        post: read("cancelResponse", "Ends a response in the background.", json("Response")),
      },
      "/v1/responses/{response_id}/input_items": {
        parameters: [inPath("response_id")],
        get: {
          ...read("listInputItems", "What a response answers, page by page.", json("InputItemList")),
          parameters: inQuery(ItemsQuery),
        },
      },
      ...FILE_PATHS,
      ...BATCH_PATHS,
      "/tokenize": {
        post: {
          ...read(
            "tokenize",
            "The tokens of a text, or of a conversation's prompt; in vLLM's form.",
            json("Tokenized"),
          ),
          requestBody: { required: true, content: json("TokenizeRequest") },
        },
      },
      "/detokenize": {
        post: {
          ...read("detokenize", "The text of tokens; in vLLM's form.", json("Detokenized")),
          requestBody: { required: true, content: json("DetokenizeRequest") },
        },
      },
      "/v1/messages": {
        post: {
          operationId: "createMessage",
          summary: "Answer a conversation, in the form of Anthropic's Messages API; streams are its events.",
          parameters: [MAX_WAIT],
          requestBody: { required: true, content: json("MessagesRequest") },
          responses: {
            200: {
              description: "OK",
              content: { ...json("Message"), "text/event-stream": { schema: { type: "string" } } },
            },
            default: { description: "A failure.", content: json("MessageError") },
          },
        },
      },
      "/v1/messages/count_tokens": {
        post: {
          operationId: "countTokens",
          summary: "How many tokens a conversation's prompt has.",
          requestBody: { required: true, content: json("CountTokensRequest") },
          responses: {
            200: { description: "OK", content: json("TokenCount") },
            default: { description: "A failure.", content: json("MessageError") },
          },
        },
      },
      "/v1/models": { get: read("listModels", "The models served.", json("ModelList")) },
      "/v1/models/{id}": {
        parameters: [inPath("id")],
        get: read("getModel", "One model.", json("Model")),
      },
      "/v1/usage": {
        get: {
          ...read("listUsage", "What was used up, by day (UTC), tenant and model. Kept where keys are set.", {
            ...json("UsageList"),
            "text/csv": { schema: { type: "string" } },
          }),
          parameters: Object.entries(UsageQuery.shape).map(([name, schema]) => {
            const { $schema: _dialect, ...type } = z.toJSONSchema(schema, { io: "input" });
            return { name, in: "query", schema: type };
          }),
        },
      },
      "/v1/fleet": {
        get: read(
          "getFleet",
          "Ranks, pages, queues and starts as they are now. Takes a key with admin.",
          json("Fleet"),
        ),
      },
      "/v1/requests": {
        get: {
          ...read("listRequests", "The latest requests of the sender's tenant at this process.", json("RequestList")),
          parameters: inQuery(RequestsQuery),
        },
      },
      "/v1/requests/{id}/timeline": {
        parameters: [inPath("id")],
        get: read(
          "getTimeline",
          "What became of one of the latest requests: places, phases, retries.",
          json("Timeline"),
        ),
      },
      "/livez": { get: read("live", "200 while the process runs.", anyJson) },
      "/readyz": { get: read("ready", "200 while requests can be served, 503 otherwise.", anyJson) },
      "/metrics": { get: read("metrics", "Prometheus text format.", { "text/plain": { schema: { type: "string" } } }) },
      "/openapi.json": { get: read("openapi", "This document.", anyJson) },
      "/": { get: read("console", "The console.", { "text/html": { schema: { type: "string" } } }) },
      "/console/{file}": {
        parameters: [inPath("file")],
        get: read("consoleFile", "What the console is made of.", CONSOLE_TYPES),
      },
      "/docs": { get: read("docs", "This document as a page.", { "text/html": { schema: { type: "string" } } }) },
    },
    components: { schemas: Object.fromEntries(schemas) },
  };
}

const CONSOLE_TYPES = Object.fromEntries(
  ["text/html", "text/javascript", "text/css", "image/svg+xml"].map((type) => [type, { schema: { type: "string" } }]),
);

const anyJson = { "application/json": { schema: { type: "object" } } };

const MAX_WAIT = {
  ...{ name: "x-margay-max-wait", in: "header", required: false, schema: { type: "number", minimum: 0 } },
  description: "Longest wait for workers with room, in seconds; then 503 `capacity_timeout` with Retry-After.",
};

const THINKERS = {
  ...{ name: THINKERS_HEADER, in: "header", required: false, schema: { type: "integer", minimum: 1 } },
  description: "Heavy thinking: so many answers side by side, and one made of them. The answers are told as reasoning.",
};

function inPath(name: string) {
  return { name, in: "path", required: true, schema: { type: "string" } };
}

function inQuery(query: z.ZodObject) {
  const { properties } = z.toJSONSchema(query, { io: "input" });
  return Object.entries(properties ?? {}).map(([name, schema]) => ({ name, in: "query", required: false, schema }));
}

function reference(name: keyof typeof SCHEMAS) {
  return { $ref: `#/components/schemas/${name}` };
}

function json(name: keyof typeof SCHEMAS) {
  return { "application/json": { schema: reference(name) } };
}

function read(operationId: string, summary: string, content: object) {
  return {
    operationId,
    summary,
    responses: { 200: { description: "OK", content }, default: { description: "A failure.", content: json("Error") } },
  };
}

function generation(operationId: string, summary: string, form: "Chat" | "") {
  const chunks = { "text/event-stream": { schema: reference(`${form}CompletionChunk`) } };
  return {
    ...read(operationId, summary, { ...json(`${form}Completion`), ...chunks }),
    parameters: form === "Chat" ? [MAX_WAIT, THINKERS] : [MAX_WAIT],
    requestBody: { required: true, content: json(form === "Chat" ? "ChatRequest" : "CompletionRequest") },
  };
}

const FILE_PATHS = {
  "/v1/files": {
    post: {
      ...read("createFile", "Keeps a file, for a batch to read.", json("File")),
      requestBody: { required: true, content: { "multipart/form-data": { schema: reference("UploadForm") } } },
    },
    get: {
      ...read("listFiles", "The files kept, page by page; the latest first unless asked otherwise.", json("FileList")),
      parameters: inQuery(FilesQuery),
    },
  },
  "/v1/files/{file_id}": {
    parameters: [inPath("file_id")],
    get: read("getFile", "What is known of a file.", json("File")),
    delete: read("deleteFile", "Forgets a file.", json("DeletedFile")),
  },
  "/v1/files/{file_id}/content": {
    parameters: [inPath("file_id")],
    get: read("getFileContent", "The file itself.", { "application/octet-stream": { schema: { type: "string" } } }),
  },
};

const BATCH_PATHS = {
  "/v1/batches": {
    post: {
      ...read("createBatch", "Answers the requests of a file, when nobody else waits for an answer.", json("Batch")),
      requestBody: { required: true, content: json("BatchRequest") },
    },
    get: {
      ...read("listBatches", "The batches kept, page by page, the latest first.", json("BatchList")),
      parameters: inQuery(BatchesQuery),
    },
  },
  "/v1/batches/{batch_id}": {
    parameters: [inPath("batch_id")],
    get: read("getBatch", "How far a batch is.", json("Batch")),
  },
  "/v1/batches/{batch_id}/cancel": {
    parameters: [inPath("batch_id")],
    post: read("cancelBatch", "Ends a batch; what is answered by then is kept.", json("Batch")),
  },
};
