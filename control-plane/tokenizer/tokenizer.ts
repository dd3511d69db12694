import { join } from "node:path";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { MargayError } from "#protocol/errors.ts";
import { BYTE_CHARACTERS, bytesOfEntry } from "#service/byte-alphabet.ts";
import { CheckpointError, readCheckpointJson } from "./checkpoint-file.ts";
import { anyOf, Markers } from "./markers.ts";
import { type AddedToken, piecesOnly, TokenizerJson } from "./tokenizer-json.ts";

const FILE = "tokenizer.json";
/** Pieces of text whose tokens are remembered; words repeat. */
const REMEMBERED_PIECES = 50_000;
/** Longer pieces are not remembered. */
const REMEMBERED_LENGTH = 64;

/** What is used of the library: its pieces, without its splitter of added tokens. */
interface Pipeline {
  readonly normalizer: { normalize(text: string): string } | null;
  readonly pre_tokenizer: { pre_tokenize(text: string, options: { section_index: number }): readonly string[] };
  readonly model: { encode(pieces: readonly string[]): readonly string[]; readonly tokens_to_ids: Map<string, number> };
}

const utf8 = new TextEncoder();
// A byte-order mark is text like any other.
const lossy = new TextDecoder("utf-8", { ignoreBOM: true });
const strict = new TextDecoder("utf-8", { ignoreBOM: true, fatal: true });

/**
 * Owns a checkpoint's vocabulary: text to tokens and tokens to bytes. Immutable; one per model, used by all requests.
 *
 * 1. decode(encode(text)) = decode(encodePlain(text)) = text for well-formed text and a vocabulary without normalizer.
 * 2. encodePlain never yields a marker token.
 * 3. tokenBytes of a run of tokens, joined, is the UTF-8 of their text.
 */
export class Tokenizer {
  /** One more than the largest token id. */
  readonly vocabSize: number;
  /** Tokens that structure a conversation. */
  readonly markers: Markers;
  /** No token stands for more bytes. */
  readonly longestTokenBytes: number;
  private readonly pipeline: Pipeline;
  private readonly bytes: readonly (Uint8Array | undefined)[];
  /** Text of each token whose bytes are whole characters; null where they are not; undefined: not asked for yet. */
  private readonly texts: (string | null | undefined)[];
  private readonly added: ReadonlyMap<string, AddedToken>;
  private readonly addedPattern: RegExp | null;
  private readonly blankPattern: RegExp | null;
  private readonly remembered = new Map<string, readonly number[]>();

  /** Builds from the contents of a `tokenizer.json`; throws `CheckpointError` that names `origin` and the field. */
  constructor(json: unknown, origin: string) {
    const parsed = TokenizerJson.safeParse(json);
    if (!parsed.success) {
      const issue = parsed.error.issues[0];
      throw new CheckpointError(
        `${origin}: ${issue?.path.join(".") ?? ""} is not what a byte-level BPE needs (${issue?.message}).`,
      );
    }
    const { added_tokens: added, model, ...rest } = parsed.data;
    const preTokenizer = piecesOnly(rest.pre_tokenizer);
    if (model.byte_fallback || preTokenizer === null) {
      throw new CheckpointError(`${origin}: pre_tokenizer must end in ByteLevel; only byte-level BPE is supported.`);
    }
    this.added = new Map(added.map((token) => [token.content, token]));
    const vocab = Object.fromEntries(Object.entries(model.vocab).filter(([entry]) => !this.added.has(entry)));
    const merges = model.merges.filter((merge) => {
      return Object.hasOwn(vocab, typeof merge === "string" ? merge.replace(" ", "") : merge.join(""));
    });
    const lacking = BYTE_CHARACTERS.findIndex((character) => !Object.hasOwn(vocab, character));
    if (lacking >= 0) throw new CheckpointError(`${origin}: model.vocab has no entry for byte ${lacking}.`);
    try {
      // Added tokens stay out of the library's vocabulary and merges, so that plain text can never become one.
      const plain = {
        ...rest,
        pre_tokenizer: preTokenizer,
        post_processor: null,
        added_tokens: [],
        model: { ...model, vocab, merges },
      };
      this.pipeline = new Library(plain, {}) as unknown as Pipeline;
    } catch (cause) {
      throw new CheckpointError(`${origin}: ${cause instanceof Error ? cause.message : "not understood"}.`, { cause });
    }
    const bytes: (Uint8Array | undefined)[] = [];
    for (const [entry, id] of Object.entries(vocab)) bytes[id] = bytesOfEntry(entry);
    for (const token of added) bytes[token.id] = utf8.encode(token.content);
    this.bytes = bytes;
    this.texts = new Array(bytes.length);
    this.vocabSize = bytes.length;
    this.longestTokenBytes = bytes.reduce((most, one) => Math.max(most, one?.length ?? 0), 1);
    const isMarker = (token: AddedToken) => [...token.content.trim()].length > 1;
    this.markers = new Markers(new Map(added.filter(isMarker).map((token) => [token.content, token.id])));
    this.addedPattern = anyOf(added.map((token) => token.content));
    this.blankPattern = anyOf(added.filter((token) => !isMarker(token)).map((token) => token.content));
  }

  /** Reads `tokenizer.json` of a checkpoint folder. */
  static async load(folder: string): Promise<Tokenizer> {
    const json = await readCheckpointJson(folder, FILE);
    if (json === null) throw new CheckpointError(`${join(folder, FILE)} does not exist.`);
    return new Tokenizer(json, join(folder, FILE));
  }

  /** Token ids of the special tokens by their spelling. */
  get specialTokens(): ReadonlyMap<string, number> {
    return this.markers.ids;
  }

  /**
   * Tokens of `text`; a spelled special token becomes that token. Nothing is added in front or behind. Work ends early,
   * with some of the tokens, once there are more than `limit`.
   */
  encode(text: string, limit: number = Number.POSITIVE_INFINITY): Int32Array<ArrayBuffer> {
    return this.encodeAround(this.addedPattern, text, (plain) => plain, limit);
  }

  /** Tokens of `text` read as plain text: a spelled special token is just its letters. */
  encodePlain(text: string, limit: number = Number.POSITIVE_INFINITY): Int32Array<ArrayBuffer> {
    return this.encodeAround(this.blankPattern, text, (plain) => plain, limit);
  }

  /** As `encode`, with `repair` applied to each stretch of text between special tokens before it is encoded as plain. */
  encodeRepaired(text: string, repair: (plain: string) => string, limit: number): Int32Array<ArrayBuffer> {
    return this.encodeAround(this.addedPattern, text, repair, limit);
  }

  /** Text of `tokens`; what is no UTF-8 becomes U+FFFD. Throws `invalid_request` naming an index outside the vocabulary. */
  decode(tokens: ArrayLike<number>): string {
    this.assertTokens(tokens, "tokens");
    const parts = Array.from(tokens, (id) => this.bytes[id] ?? new Uint8Array());
    return lossy.decode(Buffer.concat(parts));
  }

  /** Throws `invalid_request` when some token is outside the vocabulary; `param` names the list. */
  assertTokens(tokens: ArrayLike<number>, param: string): void {
    for (let i = 0; i < tokens.length; i++) {
      const id = tokens[i]!;
      if (Number.isInteger(id) && id >= 0 && id < this.vocabSize) continue;
      const at = `${param}[${i}]`;
      throw new MargayError("invalid_request", `${at} must be a token id from 0 to ${this.vocabSize - 1}.`, {
        param: at,
      });
    }
  }

  /** Bytes of one token: maybe part of a character. Empty for an id that the vocabulary leaves free. */
  tokenBytes(id: number): Uint8Array {
    return this.bytes[id] ?? new Uint8Array();
  }

  /** Text of one token alone; bytes that are no whole character become U+FFFD. */
  tokenText(id: number): string {
    return this.wholeText(id) ?? lossy.decode(this.tokenBytes(id));
  }

  /** Text of one token if its bytes are whole characters, else null. */
  wholeText(id: number): string | null {
    const known = this.texts[id];
    if (known !== undefined) return known;
    let text: string | null = null;
    try {
      text = strict.decode(this.tokenBytes(id));
    } catch {
      // Part of a character.
    }
    if (id >= 0 && id < this.vocabSize) this.texts[id] = text;
    return text;
  }

  private encodeAround(
    pattern: RegExp | null,
    text: string,
    repair: (plain: string) => string,
    limit: number,
  ): Int32Array<ArrayBuffer> {
    const tokens: number[] = [];
    let done = 0;
    let eatsSpace = false;
    const encodeUpTo = (end: number, next: AddedToken | null) => {
      let plain = text.slice(done, end);
      if (eatsSpace) plain = plain.trimStart();
      if (next?.lstrip === true) plain = plain.trimEnd();
      this.appendPlain(tokens, repair(plain), limit);
    };
    for (const match of pattern === null ? [] : text.matchAll(pattern)) {
      if (tokens.length > limit) break;
      const token = this.added.get(match[0])!;
      encodeUpTo(match.index, token);
      tokens.push(token.id);
      eatsSpace = token.rstrip;
      done = match.index + match[0].length;
    }
    if (tokens.length <= limit) encodeUpTo(text.length, null);
    return Int32Array.from(tokens);
  }

  private appendPlain(tokens: number[], text: string, limit: number): void {
    if (text === "") return;
    const { normalizer, pre_tokenizer: preTokenizer } = this.pipeline;
    // Text has at least as many bytes as characters, and no token stands for more bytes than the longest: what is behind
    // here is beyond the limit for certain.
    const enough = (limit - tokens.length + 1) * this.longestTokenBytes;
    const normal = (normalizer?.normalize(text) ?? text).slice(0, enough);
    for (const piece of preTokenizer.pre_tokenize(normal, { section_index: 0 })) {
      for (const id of this.remembered.get(piece) ?? this.tokensOfPiece(piece)) tokens.push(id);
      if (tokens.length > limit) return;
    }
  }

  private tokensOfPiece(piece: string): readonly number[] {
    const { model } = this.pipeline;
    let entry = "";
    for (const byte of utf8.encode(piece)) entry += BYTE_CHARACTERS[byte];
    const ids = model.encode([entry]).map((part) => model.tokens_to_ids.get(part)!);
    if (piece.length <= REMEMBERED_LENGTH) {
      if (this.remembered.size >= REMEMBERED_PIECES) this.remembered.clear();
      this.remembered.set(piece, ids);
    }
    return ids;
  }
}
