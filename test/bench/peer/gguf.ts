import { closeSync, openSync, writeSync } from "node:fs";
import { seeded } from "../../support/storm.ts";

/** Shape of native/bench's layer slice (frame/synthetic.h): what the other engine computes must be the same work. */
const HIDDEN = 6144;
const HEADS = 64;
const Q_LORA = 1536;
const KV_LORA = 512;
const NOPE = 128;
const ROPE = 64;
const VALUE = 128;
const DENSE = 12288;
const EXPERT = 2048;
const EXPERTS = 16;
const TOP_K = 8;
const VOCABULARY = 384;

const ALIGNMENT = 32;
const TYPES = { F32: 0, BF16: 30 } as const;
const VALUES = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9 } as const;
const TOKEN_KINDS = { normal: 1, unknown: 2, control: 3, byte: 6 } as const;
const CHUNK_VALUES = 1 << 22;

interface TensorPlan {
  readonly name: string;
  readonly type: keyof typeof TYPES;
  /** Fastest first, as ggml has them. */
  readonly sides: readonly number[];
}

const size = ({ type, sides }: TensorPlan) => sides.reduce((a, b) => a * b, type === "F32" ? 4 : 2);
const padded = (bytes: number) => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/**
 * Writes a model of two `deepseek2` layers whose multiplications are those of one LongCat layer with eight experts: two
 * attentions, two dense feed-forward parts of 12288 (one as the shared expert), one mixture. Weights are normal values.
 */
export function writeTwinModel(path: string): void {
  const tensors = plan();
  const file = openSync(path, "wx");
  try {
    const head = new Header(tensors);
    let at = writeSync(file, head.bytes());
    const pad = padded(at) - at;
    at += writeSync(file, new Uint8Array(pad));
    const normal = normalBf16();
    for (const tensor of tensors) {
      const bytes = size(tensor);
      // Norms, and the router, which is small enough for any values.
      const source =
        tensor.type === "F32"
          ? new Uint8Array(new Float32Array(bytes / 4).map((_, i) => f32(tensor, i)).buffer)
          : normal;
      for (let done = 0; done < bytes; ) done += writeSync(file, source, 0, Math.min(source.length, bytes - done));
      writeSync(file, new Uint8Array(padded(bytes) - bytes));
    }
  } finally {
    closeSync(file);
  }
}

const f32 = (tensor: TensorPlan, i: number) => (tensor.sides.length === 1 ? 1 : Math.sin(i * 12.9898) / 80);

function plan(): readonly TensorPlan[] {
  const tensors: TensorPlan[] = [];
  const add = (name: string, ...sides: readonly number[]) =>
    void tensors.push({ name: `${name}.weight`, type: "BF16", sides });
  const plain = (name: string, ...sides: readonly number[]) =>
    void tensors.push({ name: `${name}.weight`, type: "F32", sides });
  add("token_embd", HIDDEN, VOCABULARY);
  plain("output_norm", HIDDEN);
  add("output", HIDDEN, VOCABULARY);
  for (const layer of [0, 1]) {
    const block = `blk.${layer}`;
    plain(`${block}.attn_norm`, HIDDEN);
    plain(`${block}.attn_q_a_norm`, Q_LORA);
    plain(`${block}.attn_kv_a_norm`, KV_LORA);
    add(`${block}.attn_q_a`, HIDDEN, Q_LORA);
    add(`${block}.attn_q_b`, Q_LORA, HEADS * (NOPE + ROPE));
    add(`${block}.attn_kv_a_mqa`, HIDDEN, KV_LORA + ROPE);
    add(`${block}.attn_k_b`, NOPE, KV_LORA, HEADS);
    add(`${block}.attn_v_b`, KV_LORA, VALUE, HEADS);
    add(`${block}.attn_output`, HEADS * VALUE, HIDDEN);
    plain(`${block}.ffn_norm`, HIDDEN);
    const dense = layer === 0 ? "" : "_shexp";
    add(`${block}.ffn_gate${dense}`, HIDDEN, DENSE);
    add(`${block}.ffn_up${dense}`, HIDDEN, DENSE);
    add(`${block}.ffn_down${dense}`, DENSE, HIDDEN);
  }
  plain("blk.1.ffn_gate_inp", HIDDEN, EXPERTS);
  add("blk.1.ffn_gate_exps", HIDDEN, EXPERT, EXPERTS);
  add("blk.1.ffn_up_exps", HIDDEN, EXPERT, EXPERTS);
  add("blk.1.ffn_down_exps", EXPERT, HIDDEN, EXPERTS);
  return tensors;
}

/** Values as weights have them: random bits would be denormals, which are slow everywhere. */
function normalBf16(): Uint8Array {
  const random = seeded(1);
  const floats = new Float32Array(1);
  const bits = new Uint32Array(floats.buffer);
  const table = Uint16Array.from({ length: 1 << 16 }, () => {
    floats[0] = 0.02 * Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    return bits[0]! >>> 16;
  });
  let state = 1;
  const values = new Uint16Array(CHUNK_VALUES);
  for (let i = 0; i < values.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    values[i] = table[state >>> 16]!;
  }
  return new Uint8Array(values.buffer);
}

/** The part of a GGUF file before its tensors. */
class Header {
  readonly #parts: Uint8Array[] = [];

  constructor(tensors: readonly TensorPlan[]) {
    const settings = metadata();
    this.#parts.push(Buffer.from("GGUF"));
    this.#u32(3);
    this.#u64(tensors.length);
    this.#u64(settings.length);
    for (const [key, write] of settings) {
      this.#text(key);
      write(this);
    }
    let offset = 0;
    for (const tensor of tensors) {
      this.#text(tensor.name);
      this.#u32(tensor.sides.length);
      for (const side of tensor.sides) this.#u64(side);
      this.#u32(TYPES[tensor.type]);
      this.#u64(offset);
      offset += padded(size(tensor));
    }
  }

  bytes(): Uint8Array {
    return Buffer.concat(this.#parts);
  }

  number(kind: "u32" | "f32", value: number): void {
    this.#u32(VALUES[kind]);
    this.#raw(kind, [value]);
  }
  flag(value: boolean): void {
    this.#u32(VALUES.bool);
    this.#parts.push(Uint8Array.of(value ? 1 : 0));
  }
  string(value: string): void {
    this.#u32(VALUES.string);
    this.#text(value);
  }
  strings(values: readonly string[]): void {
    this.#array("string", values.length);
    for (const value of values) this.#text(value);
  }
  numbers(kind: "i32" | "f32", values: readonly number[]): void {
    this.#array(kind, values.length);
    this.#raw(kind, values);
  }

  #array(kind: keyof typeof VALUES, length: number): void {
    this.#u32(VALUES.array);
    this.#u32(VALUES[kind]);
    this.#u64(length);
  }
  #raw(kind: "u32" | "i32" | "f32", values: readonly number[]): void {
    const array =
      kind === "f32" ? Float32Array.from(values) : kind === "i32" ? Int32Array.from(values) : Uint32Array.from(values);
    this.#parts.push(new Uint8Array(array.buffer));
  }
  #u32(value: number): void {
    this.#raw("u32", [value]);
  }
  #u64(value: number): void {
    this.#parts.push(new Uint8Array(BigUint64Array.of(BigInt(value)).buffer));
  }
  #text(value: string): void {
    const bytes = Buffer.from(value);
    this.#u64(bytes.length);
    this.#parts.push(bytes);
  }
}

type Setting = readonly [key: string, write: (header: Header) => void];

function metadata(): readonly Setting[] {
  const count = (key: string, value: number): Setting => [`deepseek2.${key}`, (header) => header.number("u32", value)];
  const real = (key: string, value: number): Setting => [`deepseek2.${key}`, (header) => header.number("f32", value)];
  const tokens = Array.from({ length: VOCABULARY }, (_, id) => token(id));
  return [
    ["general.architecture", (header) => header.string("deepseek2")],
    count("block_count", 2),
    count("context_length", 16384),
    count("embedding_length", HIDDEN),
    count("feed_forward_length", DENSE),
    count("attention.head_count", HEADS),
    count("attention.head_count_kv", 1),
    real("attention.layer_norm_rms_epsilon", 1e-5),
    count("attention.q_lora_rank", Q_LORA),
    count("attention.kv_lora_rank", KV_LORA),
    count("attention.key_length", KV_LORA + ROPE),
    count("attention.value_length", KV_LORA),
    count("attention.key_length_mla", NOPE + ROPE),
    count("attention.value_length_mla", VALUE),
    count("rope.dimension_count", ROPE),
    real("rope.freq_base", 1e7),
    count("leading_dense_block_count", 1),
    count("expert_feed_forward_length", EXPERT),
    count("expert_count", EXPERTS),
    count("expert_used_count", TOP_K),
    count("expert_shared_count", DENSE / EXPERT),
    real("expert_weights_scale", 1),
    ["deepseek2.expert_weights_norm", (header) => header.flag(false)],
    count("expert_gating_func", 1),
    count("vocab_size", VOCABULARY),
    ["tokenizer.ggml.model", (header) => header.string("llama")],
    ["tokenizer.ggml.tokens", (header) => header.strings(tokens.map(({ text }) => text))],
    [
      "tokenizer.ggml.scores",
      (header) =>
        header.numbers(
          "f32",
          tokens.map(() => 0),
        ),
    ],
    [
      "tokenizer.ggml.token_type",
      (header) =>
        header.numbers(
          "i32",
          tokens.map(({ kind }) => TOKEN_KINDS[kind]),
        ),
    ],
    ["tokenizer.ggml.bos_token_id", (header) => header.number("u32", 1)],
    ["tokenizer.ggml.eos_token_id", (header) => header.number("u32", 2)],
    ["tokenizer.ggml.unknown_token_id", (header) => header.number("u32", 0)],
  ];
}

/** Three marks, the 256 bytes, and words that fill up the vocabulary. */
function token(id: number): { readonly text: string; readonly kind: keyof typeof TOKEN_KINDS } {
  if (id < 3) return { text: ["<unk>", "<s>", "</s>"][id]!, kind: id === 0 ? "unknown" : "control" };
  if (id < 259) return { text: `<0x${(id - 3).toString(16).toUpperCase().padStart(2, "0")}>`, kind: "byte" };
  return { text: `word${id}`, kind: "normal" };
}
