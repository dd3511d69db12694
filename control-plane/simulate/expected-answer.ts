import { EMPTY_DIGEST, extendDigest } from "../../native/binding/sim-digest.ts";
import { SIM_EOS_TOKEN, simTokenAfter } from "../../native/binding/sim-token.ts";
import type { ServedModel } from "../chat/served-model.ts";
import type { SimRequest } from "./scenario.ts";

/** What a request's answer has to be, whoever computes it. */
export interface ExpectedAnswer {
  readonly text: string;
  readonly finish: "stop" | "length";
  /** Generated; where a stop string ends the answer, the most there can be. */
  readonly tokens: number;
  readonly stop: string | null;
}

/** One token in so many is the end of a text. */
const END_EVERY = 60;
/** Characters of a stop string. */
const STOP_LENGTH = 3;

/** True where a simulated text ends: a function of its first token and the place alone. */
export function endsAt(tokens: Int32Array, index: number): boolean {
  let mixed = Math.imul(tokens[0]! ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(index + 1, 0xc2b2ae35);
  mixed = Math.imul(mixed ^ (mixed >>> 15), 0x27d4eb2f);
  return ((mixed ^ (mixed >>> 13)) >>> 0) % END_EVERY === 0;
}

export function expectedAnswer(model: ServedModel, { prompt, maxTokens, stopsEarly }: SimRequest): ExpectedAnswer {
  let digest = EMPTY_DIGEST;
  for (const token of prompt) digest = extendDigest(digest, token);
  const tokens: number[] = [];
  let finish: "stop" | "length" = "length";
  while (tokens.length < maxTokens) {
    if (endsAt(prompt, tokens.length)) {
      finish = "stop";
      tokens.push(SIM_EOS_TOKEN);
      break;
    }
    tokens.push(simTokenAfter(digest, prompt.length + tokens.length, model.vocabSize));
  }
  const said = finish === "stop" ? tokens.slice(0, -1) : tokens;
  const text = model.tokenizer.decode(Int32Array.from(said));
  const at = Math.floor(text.length / 2) - 1;
  const stop = text.slice(at, at + STOP_LENGTH);
  // Not within the name of a marker, which is one piece whatever it looks like.
  if (!stopsEarly || !/^[a-z ]{3}$/.test(stop) || text.includes("<")) {
    return { text, finish, tokens: tokens.length, stop: null };
  }
  return { text: text.slice(0, text.indexOf(stop)), finish: "stop", tokens: tokens.length, stop };
}
