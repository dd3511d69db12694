import { Agent, request } from "node:http";

/** How one streamed completion went, seen from outside. Times are milliseconds since the request was made. */
export interface Streamed {
  readonly firstMs: number;
  readonly endMs: number;
  readonly tokens: number;
}

/** Keeps its connections, so that only requests are measured. */
export const agent = new Agent({ keepAlive: true, maxSockets: 64 });

const FIRST = Buffer.from('"text":');
const TAIL_BYTES = 1_024;

/**
 * Streams one completion. Does as little as possible per chunk: the client shares the cores with what it measures.
 * Rejects when the answer is not whole.
 */
export function streamCompletion(url: string, body: object): Promise<Streamed> {
  const text = JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } });
  const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(text) };
  return new Promise((resolve, reject) => {
    const startMs = performance.now();
    const asked = request(`${url}/v1/completions`, { method: "POST", agent, headers }, (response) => {
      let firstMs = 0;
      let tail: Buffer = Buffer.alloc(0);
      response.on("data", (bytes: Buffer) => {
        if (firstMs === 0 && bytes.includes(FIRST)) firstMs = performance.now() - startMs;
        tail = bytes.length >= TAIL_BYTES ? bytes : Buffer.concat([tail, bytes]).subarray(-TAIL_BYTES);
      });
      response.on("error", reject);
      response.on("end", () => {
        const end = tail.toString();
        const tokens = /"completion_tokens":(\d+)/.exec(end)?.[1];
        if (response.statusCode !== 200 || tokens === undefined || !end.trimEnd().endsWith("data: [DONE]")) {
          reject(new Error(`status ${response.statusCode}, the stream ended with: ${end}`));
        } else resolve({ firstMs, endMs: performance.now() - startMs, tokens: Number(tokens) });
      });
    });
    asked.on("error", reject);
    asked.end(text);
  });
}
