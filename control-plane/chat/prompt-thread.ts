import { parentPort, workerData } from "node:worker_threads";
import { asMargayError, type ErrorCode } from "#protocol/errors.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type Prompt, type PromptModel, type PromptOptions, renderChat } from "./prompt.ts";
import { loadChatTemplate } from "./templates.ts";

/** What the thread begins with. */
export interface PromptThreadData {
  readonly folder: string;
  readonly contextLength: number;
}

/** Plain data: it is copied from thread to thread. */
export type PromptQuestion =
  | {
      readonly kind: "chat";
      readonly id: number;
      readonly messages: readonly unknown[];
      readonly options: PromptOptions;
    }
  | { readonly kind: "text"; readonly id: number; readonly text: string; readonly limit: number };

export type PromptAnswer =
  | { readonly kind: "prompt"; readonly id: number; readonly prompt: Prompt }
  | {
      readonly kind: "fault";
      readonly id: number;
      readonly code: ErrorCode;
      readonly message: string;
      readonly param: string | null;
    };

function read(model: PromptModel, question: PromptQuestion): Prompt {
  if (question.kind === "chat") return renderChat(model, question.messages, question.options);
  return { tokens: model.tokenizer.encode(question.text, question.limit), startsInReasoning: false };
}

function answer(model: PromptModel, question: PromptQuestion): PromptAnswer {
  const { id } = question;
  try {
    return { kind: "prompt", id, prompt: read(model, question) };
  } catch (thrown) {
    const { code, message, param } = asMargayError(thrown);
    return { kind: "fault", id, code, message, param };
  }
}

// Questions that come while the model is read wait in the port.
const { folder, contextLength } = workerData as PromptThreadData;
const [tokenizer, template] = await Promise.all([Tokenizer.load(folder), loadChatTemplate(folder)]);
const model: PromptModel = { contextLength, tokenizer, template };
parentPort!.on("message", (question: PromptQuestion) => parentPort!.postMessage(answer(model, question)));
