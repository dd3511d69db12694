import { connect, type Socket } from "node:net";

/** How one streamed completion went, seen from outside. Times are milliseconds since the request was made. */
export interface Streamed {
  readonly firstMs: number;
  readonly endMs: number;
  readonly tokens: number;
}

/** Kept connections by address, so that only requests are measured. */
const idle = new Map<string, Socket[]>();

const FIRST = Buffer.from('"text":');
/** The end of a chunked body. */
const LAST_CHUNK = "\r\n0\r\n\r\n";
const TAIL_BYTES = 1_024;

/**
 * Streams one completion over a socket of its own kept connections. Does as little as possible per request and per
 * chunk: the client shares the cores with what it measures. Rejects when the answer is not whole.
 */
export async function streamCompletion(url: string, body: object): Promise<Streamed> {
  const { hostname, port, host } = new URL(url);
  const text = JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } });
  const head = `POST /v1/completions HTTP/1.1\r\nhost: ${host}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n`;
  const socket = idle.get(host)?.pop() ?? (await open(hostname, Number(port)));
  try {
    const streamed = await exchange(socket, head + text);
    const kept = idle.get(host) ?? [];
    idle.set(host, kept);
    kept.push(socket);
    return streamed;
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

/** Closes what is kept. */
export function closeConnections(): void {
  for (const sockets of idle.values()) for (const socket of sockets.splice(0)) socket.destroy();
}

async function open(host: string, port: number): Promise<Socket> {
  const socket = connect({ host, port, noDelay: true });
  await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  return socket;
}

function exchange(socket: Socket, request: string): Promise<Streamed> {
  return new Promise((resolve, reject) => {
    const startMs = performance.now();
    let firstMs = 0;
    let status = "";
    let tail: Buffer = Buffer.alloc(0);
    const stop = () => void socket.off("data", take).off("error", fail).off("close", cut);
    const fail = (error: Error) => {
      stop();
      reject(error);
    };
    const cut = () => fail(new Error(`${status}, the connection was closed after: ${tail}`));
    const take = (bytes: Buffer) => {
      if (status === "") status = bytes.subarray(0, 12).toString("latin1");
      if (firstMs === 0 && bytes.includes(FIRST)) firstMs = performance.now() - startMs;
      tail = bytes.length >= TAIL_BYTES ? bytes : Buffer.concat([tail, bytes]).subarray(-TAIL_BYTES);
      const whole = tail.subarray(-LAST_CHUNK.length).toString("latin1") === LAST_CHUNK;
      if (!whole && status === "HTTP/1.1 200") return;
      const end = tail.toString();
      const tokens = /"completion_tokens":(\d+)/.exec(end)?.[1];
      if (tokens === undefined || !end.includes("data: [DONE]"))
        return fail(new Error(`${status}, ended with: ${end}`));
      stop();
      resolve({ firstMs, endMs: performance.now() - startMs, tokens: Number(tokens) });
    };
    socket.on("data", take).on("error", fail).on("close", cut);
    socket.write(request);
  });
}
