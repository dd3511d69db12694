import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import type * as XGrammar from "@mlc-ai/web-xgrammar";
import { z } from "zod";
import type { Grammar } from "#protocol/constraint.ts";
import { bytesOfEntry } from "../byte-alphabet.ts";
import { mayBeUtf8, type Utf8State, utf8After } from "./utf8-state.ts";

/** Compiled grammars that are kept. */
const KEPT = 64;

type Library = typeof XGrammar;
type Compiled = XGrammar.CompiledGrammar;

/** A text that is followed token by token. To be disposed. */
export interface TextMatcher {
  /** False: the token can't come next. */
  accept(token: number): boolean;
  /** What can, a bit each; null: nothing, the text has ended. */
  mask(): Promise<Uint32Array | null>;
  dispose(): void;
}

const TokenizerJson = z.looseObject({
  added_tokens: z.array(z.looseObject({ id: z.int().min(0) })).default([]),
  model: z.looseObject({ vocab: z.record(z.string(), z.int().min(0)) }),
});

/**
 * Owns the grammar library, which compiles grammars against a checkpoint's vocabulary. Belongs to one thread, alone: an
 * input it can't take ends the WebAssembly instance, and with it everything that was made here.
 *
 * 1 special tokens are part of no text, whatever their spelling
 * 2 a text is UTF-8 all along: the library lets overlong characters, surrogates and what is above U+10FFFF pass
 */
export class GrammarLibrary {
  readonly #library: Library;
  readonly #compiler: XGrammar.GrammarCompiler;
  readonly #bytes: readonly Uint8Array[];
  /** Least recently used first. */
  readonly #compiled = new Map<string, Compiled>();

  private constructor(library: Library, compiler: XGrammar.GrammarCompiler, bytes: readonly Uint8Array[]) {
    this.#library = library;
    this.#bytes = bytes;
    this.#compiler = compiler;
  }

  /** `vocabSize`: bits of a mask. */
  static async open(folder: string, vocabSize: number): Promise<GrammarLibrary> {
    const library = await load();
    const json = TokenizerJson.parse(JSON.parse(await readFile(join(folder, "tokenizer.json"), "utf8")));
    const entries = new Array<string>(vocabSize).fill("");
    for (const [entry, id] of Object.entries(json.model.vocab)) entries[id] = entry;
    for (const { id } of json.added_tokens) entries[id] = "";
    const bytes = entries.map(bytesOfEntry);
    for (const [id, one] of bytes.entries()) if (!mayBeUtf8(one)) entries[id] = "";
    // Every matcher names its own end tokens.
    const info = await library.TokenizerInfo.createTokenizerInfo(entries, "byte_level", false, vocabSize, []);
    return new GrammarLibrary(library, await library.GrammarCompiler.createGrammarCompiler(info, false), bytes);
  }

  /** Throws whatever the library throws; nothing here can be used after that. */
  async compile(grammar: Grammar): Promise<Compiled> {
    const key = `${grammar.kind} ${grammar.text}`;
    const known = this.#compiled.get(key);
    this.#compiled.delete(key);
    const compiled = known ?? (await this.#make(grammar));
    this.#compiled.set(key, compiled);
    if (this.#compiled.size > KEPT) {
      const [oldest, least] = this.#compiled.entries().next().value!;
      this.#compiled.delete(oldest);
      least.dispose();
    }
    return compiled;
  }

  /** Follows a text; `ends` are the tokens that may stand behind a whole one. */
  async follow(grammar: Grammar, ends: readonly number[]): Promise<TextMatcher> {
    const compiled = await this.compile(grammar);
    const matcher = await this.#library.GrammarMatcher.createGrammarMatcher(compiled, [...ends]);
    let state: Utf8State = 0;
    return {
      accept: (token) => {
        const next = ends.includes(token) ? state : utf8After(state, this.#bytes[token] ?? new Uint8Array());
        if (next === null || !matcher.acceptToken(token)) return false;
        state = next;
        return true;
      },
      mask: async () => {
        if (matcher.isTerminated()) return null;
        const { buffer, byteOffset, length } = await matcher.getNextTokenBitmask();
        const mask = new Uint32Array(buffer, byteOffset, length);
        if (state !== 0 && state.high - state.low < 0x3f) this.#clear(mask, state.low, state.high);
        return mask;
      },
      dispose: () => matcher.dispose(),
    };
  }

  /** Leaves tokens whose first byte is from `low` to `high`. */
  #clear(mask: Uint32Array, low: number, high: number): void {
    for (const [id, bytes] of this.#bytes.entries()) {
      if (bytes.length > 0 && (bytes[0]! < low || bytes[0]! > high)) mask[id >>> 5]! &= ~(1 << (id & 31));
    }
  }

  #make({ kind, text }: Grammar): Promise<Compiled> {
    if (kind === "ebnf") return this.#compiler.compileGrammar(text);
    return this.#compiler.compileStructuralTag({ type: "structural_tag", format: { type: "regex", pattern: text } });
  }
}

/** The package is a script for browsers: it finds Node by globals that modules lack, and leaves itself in another one. */
async function load(): Promise<Library> {
  const place = import.meta.resolve("@mlc-ai/web-xgrammar");
  Object.assign(globalThis, { require: createRequire(place), __filename: place, __dirname: "." });
  await import("@mlc-ai/web-xgrammar");
  return (globalThis as unknown as { readonly xgrammar: Library }).xgrammar;
}
