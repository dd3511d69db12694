import type { ServerResponse } from "node:http";
import { parseArgs } from "node:util";
import { fastify } from "fastify";

// What a stream of tokens costs at the least: fastify, one timer for all streams, one event per token made by JSON.stringify.
const { values } = parseArgs({ options: { "prefill-ms": { type: "string" }, "step-ms": { type: "string" } } });

interface Asked {
  readonly max_tokens: number;
}

const streams = new Map<ServerResponse, number>();
const app = fastify();
let requests = 0;

function event(response: ServerResponse, id: number, delta: object, finish: string | null): void {
  const choices = [{ index: 0, delta, logprobs: null, finish_reason: finish }];
  const chunk = {
    id: `chatcmpl-${id}`,
    object: "chat.completion.chunk",
    created: 1_700_000_000,
    model: "nano",
    choices,
  };
  response.write(`data: ${JSON.stringify(chunk)}\n\n`);
}

app.post<{ Body: Asked }>("/v1/chat/completions", (request, reply) => {
  reply.hijack();
  const response = reply.raw;
  const id = requests++;
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
  setTimeout(() => {
    event(response, id, { role: "assistant", content: "first" }, null);
    streams.set(response, request.body.max_tokens - 1);
  }, Number(values["prefill-ms"]));
  response.once("close", () => streams.delete(response));
});

setInterval(() => {
  let id = 0;
  for (const [response, left] of streams) {
    event(response, id++, { content: " word" }, left === 1 ? "length" : null);
    streams.set(response, left - 1);
    if (left > 1) continue;
    streams.delete(response);
    response.end("data: [DONE]\n\n");
  }
}, Number(values["step-ms"]));

const url = await app.listen({ host: "127.0.0.1", port: 0 });
process.stdout.write(`${url}\n`);
