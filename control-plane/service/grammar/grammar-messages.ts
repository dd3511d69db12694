import type { Grammar } from "#protocol/constraint.ts";

/** What a grammar thread is given at its start. */
export interface GrammarThreadData {
  readonly folder: string;
  readonly vocabSize: number;
}

/** To the thread. Answered in order, one answer each; `close` has none. */
export type GrammarQuestion =
  /** Can this be compiled? */
  | { readonly kind: "vet"; readonly grammar: Grammar }
  /** Begins text `id`, of which `tokens` are there. */
  | {
      readonly kind: "open";
      readonly id: number;
      readonly grammar: Grammar;
      readonly ends: readonly number[];
      readonly tokens: readonly number[];
    }
  /** Texts went on, by a token each. */
  | { readonly kind: "accept"; readonly ids: Int32Array; readonly tokens: Int32Array }
  | { readonly kind: "close"; readonly id: number };

/** What may come next in a text: a bit per token; null: it went where its grammar doesn't. */
export interface TextMask {
  readonly id: number;
  readonly mask: Uint32Array | null;
}

/** From the thread. */
export type GrammarAnswer =
  | { readonly kind: "ready" }
  | { readonly kind: "vetted" }
  | { readonly kind: "masks"; readonly masks: readonly TextMask[] }
  /** The last word of the thread: the library gave up, with this to say. */
  | { readonly kind: "fault"; readonly sentence: string };
