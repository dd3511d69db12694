/** How a request ended for its client. */
export type Answer =
  | { readonly kind: "ok"; readonly text: string; readonly finish: string; readonly tokens: number }
  | { readonly kind: "error"; readonly status: number; readonly code: string; readonly text: string }
  /** The client left before the end. */
  | { readonly kind: "left"; readonly text: string }
  /** The connection ended without an answer. */
  | { readonly kind: "broken"; readonly text: string };

interface Event {
  readonly choices?: readonly { readonly text: string; readonly finish_reason: string | null }[];
  readonly usage?: { readonly completion_tokens: number } | null;
  readonly error?: { readonly code: string };
}

/**
 * Reads an HTTP response of the completions API as its bytes come, streamed or whole.
 *
 *   head -> (chunk)* -> end
 */
export class SimResponse {
  /** Of the answer, so far. */
  text = "";
  #status = 0;
  #finish = "";
  #tokens = 0;
  #done = false;
  #error: string | null = null;
  #chunked = false;
  #streamed = false;
  /** Bytes as latin1 that are not understood yet: of the head or a chunk, then of the body. */
  #raw = "";
  #body = "";

  feed(bytes: string): void {
    this.#raw += bytes;
    if (this.#status === 0 && !this.#readHead()) return;
    if (this.#chunked) while (this.#readChunk());
    else {
      this.#body += this.#raw;
      this.#raw = "";
    }
    if (this.#streamed) while (this.#readEvent());
  }

  /** The connection is over. */
  end(): Answer {
    const { text } = this;
    if (this.#status === 0) return { kind: "broken", text };
    if (!this.#streamed) {
      try {
        this.#take(parse(this.#body));
      } catch {
        return { kind: "broken", text };
      }
      this.#done = this.#status === 200;
    }
    if (this.#error !== null) return { kind: "error", status: this.#status, code: this.#error, text: this.text };
    if (!this.#done) return { kind: "broken", text };
    return { kind: "ok", text: this.text, finish: this.#finish, tokens: this.#tokens };
  }

  #readHead(): boolean {
    const at = this.#raw.indexOf("\r\n\r\n");
    if (at < 0) return false;
    const head = this.#raw.slice(0, at).toLowerCase();
    this.#raw = this.#raw.slice(at + 4);
    this.#status = Number(head.slice(9, 12));
    this.#chunked = head.includes("transfer-encoding: chunked");
    this.#streamed = head.includes("text/event-stream");
    return true;
  }

  #readChunk(): boolean {
    const line = this.#raw.indexOf("\r\n");
    if (line < 0) return false;
    const size = Number.parseInt(this.#raw.slice(0, line), 16);
    const end = line + 2 + size;
    if (size === 0 || this.#raw.length < end + 2) return false;
    this.#body += this.#raw.slice(line + 2, end);
    this.#raw = this.#raw.slice(end + 2);
    return true;
  }

  #readEvent(): boolean {
    const at = this.#body.indexOf("\n\n");
    if (at < 0) return false;
    const event = this.#body.slice(0, at);
    this.#body = this.#body.slice(at + 2);
    if (event === "data: [DONE]") this.#done = true;
    else if (event.startsWith("data: ")) this.#take(parse(event.slice(6)));
    return true;
  }

  #take({ choices, usage, error }: Event): void {
    const choice = choices?.[0];
    if (choice !== undefined) this.text += choice.text;
    this.#finish = choice?.finish_reason ?? this.#finish;
    this.#tokens = usage?.completion_tokens ?? this.#tokens;
    this.#error = error?.code ?? this.#error;
  }
}

function parse(bytes: string): Event {
  return JSON.parse(Buffer.from(bytes, "latin1").toString("utf8")) as Event;
}
