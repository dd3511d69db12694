import { connect, type Socket } from "node:net";

const EVENT = Buffer.from("data: ");

/** One streamed chat answer as its reader sees it, at the least cost: events are counted, not read. */
export class OpenStream {
  /** Events so far. */
  events = 0;
  /** The longest silence since `watch`, milliseconds. */
  longestMs = 0;
  readonly #socket: Socket;
  readonly #first = Promise.withResolvers<void>();
  readonly #ended = Promise.withResolvers<void>();
  #lastMs = 0;
  #status = "";

  constructor(url: string, key: string, body: object) {
    const { hostname, port, host } = new URL(url);
    this.#first.promise.catch(() => {});
    this.#ended.promise.catch(() => {});
    const text = JSON.stringify({ ...body, stream: true });
    const head = `POST /v1/chat/completions HTTP/1.1\r\nhost: ${host}\r\nauthorization: Bearer ${key}\r\n`;
    const type = `content-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n`;
    this.#socket = connect({ host: hostname, port: Number(port), noDelay: true });
    this.#socket.on("data", (bytes: Buffer) => this.#take(bytes)).on("error", (error) => this.#fail(error));
    this.#socket.on("close", () => this.#fail(new Error(`${this.#status}: the connection was closed`)));
    this.#socket.write(head + type + text);
  }

  /** Rejects when there is none. */
  get first(): Promise<void> {
    return this.#first.promise;
  }

  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** Looks for the longest silence from now on. */
  watch(): void {
    this.longestMs = 0;
    this.#lastMs = performance.now();
  }

  close(): void {
    this.#socket.destroy();
  }

  #take(bytes: Buffer): void {
    if (this.#status === "") this.#status = bytes.subarray(0, 12).toString("latin1");
    if (this.#status !== "HTTP/1.1 200") {
      this.#fail(new Error(bytes.toString()));
      return;
    }
    const before = this.events;
    for (let at = bytes.indexOf(EVENT); at >= 0; at = bytes.indexOf(EVENT, at + EVENT.length)) this.events++;
    if (this.events === before) return;
    const nowMs = performance.now();
    this.longestMs = Math.max(this.longestMs, nowMs - this.#lastMs);
    this.#lastMs = nowMs;
    if (before === 0) this.#first.resolve();
    if (bytes.subarray(-40).includes("data: [DONE]")) this.#ended.resolve();
  }

  #fail(error: Error): void {
    this.#first.reject(error);
    this.#ended.reject(error);
  }
}
