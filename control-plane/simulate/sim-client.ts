import { type Duplex, duplexPair } from "node:stream";
import type { SimRequest } from "./scenario.ts";
import { type Answer, SimResponse } from "./sim-response.ts";
import type { VirtualTime } from "./virtual-time.ts";

/** A client's side of one HTTP exchange. */
export interface Call {
  readonly request: SimRequest;
  /** Which control plane it asked. */
  readonly gateway: number;
  readonly sentMs: number;
  /** Null while nothing final was heard. */
  answer: Answer | null;
  answeredMs: number;
  /** What came so far of the text. */
  readonly text: string;
  /** The client goes away. */
  leave(): void;
}

/**
 * Sends one request over a connection of its own. `open` takes the server's end of it. `onText` is called after each piece
 * of a stream, `onAnswer` once.
 */
export function startCall(
  { request, gateway, stop }: { readonly request: SimRequest; readonly gateway: number; readonly stop: string | null },
  time: VirtualTime,
  open: (connection: Duplex) => void,
  on: { readonly text: (call: Call) => void; readonly answer: (call: Call) => void },
): Call {
  const [mine, theirs] = duplexPair();
  const response = new SimResponse();
  let left = false;
  const call: Call = {
    ...{ request, gateway, answer: null, sentMs: time.nowMs, answeredMs: 0 },
    get text() {
      return response.text;
    },
    leave() {
      if (call.answer !== null) return;
      left = true;
      mine.destroy();
      theirs.destroy();
    },
  };
  const end = (): void => {
    if (call.answer !== null) return;
    call.answer = left ? { kind: "left", text: response.text } : response.end();
    call.answeredMs = time.nowMs;
    on.answer(call);
  };
  mine.setEncoding("latin1");
  mine.on("data", (bytes: string) => {
    response.feed(bytes);
    if (request.stream) on.text(call);
  });
  mine.once("end", end);
  mine.once("close", end);
  mine.on("error", () => {});
  theirs.on("error", () => {});
  open(theirs);
  mine.write(messageOf(request, stop));
  return call;
}

function messageOf({ prompt, maxTokens, stream }: SimRequest, stop: string | null): string {
  const body = JSON.stringify({
    model: "sim",
    prompt: [...prompt],
    max_tokens: maxTokens,
    temperature: 0,
    seed: 1,
    ...(stop === null ? {} : { stop }),
    ...(stream ? { stream: true, stream_options: { include_usage: true } } : {}),
  });
  const head = [
    "POST /v1/completions HTTP/1.1",
    "host: sim",
    "connection: close",
    "content-type: application/json",
    `content-length: ${Buffer.byteLength(body)}`,
  ];
  return `${head.join("\r\n")}\r\n\r\n${body}`;
}
