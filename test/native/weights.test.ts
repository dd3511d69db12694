import { execFileSync } from "node:child_process";
import { readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  CheckpointFiles,
  type LoadedWeights,
  loadWeights,
  readTensors,
  type Tensors,
  writeTensors,
} from "../support/checkpoint-files.ts";
import { buildNativePrograms } from "../support/native-program.ts";

const files = new CheckpointFiles();
beforeAll(() => buildNativePrograms(), 20 * 60_000);
afterAll(() => files.remove());

const load = loadWeights;

function expectRefused(loaded: LoadedWeights, ...words: readonly string[]): void {
  expect(loaded).toMatchObject({ ok: false, code: "checkpoint" });
  for (const word of words) expect(loaded.message).toContain(word);
}

const expert = "model.layers.1.mlp.experts.3.up_proj.weight";

describe("a broken checkpoint is one sentence that names the cause", () => {
  it("a missing tensor", () => {
    expectRefused(load(files.write("plain", (tensors) => tensors.delete(expert))), `tensor ${expert} is missing`);
  });

  it("a misshapen tensor", () => {
    const folder = files.write("plain", (tensors) => {
      const { dtype, bytes } = tensors.get(expert)!;
      tensors.set(expert, { dtype, shape: [96, 64], bytes });
    });
    expectRefused(load(folder), expert, "[96, 64]", "[64, 96] is expected");
  });

  it("a truncated file, cut within data, within the header, and to nothing", () => {
    const cut = (bytes: number) => {
      const folder = files.write("plain");
      truncateSync(join(folder, "model.safetensors"), bytes);
      return load(folder);
    };
    expectRefused(cut(1_000_000), "is truncated", "model.safetensors");
    expectRefused(cut(500), "truncated within its header");
    expectRefused(cut(0), "truncated within its header");
  });

  it.each([
    ["bf16", "model.layers.0.self_attn.1.q_b_proj.weight", "plain", [0xc0, 0x7f]],
    ["bf16 infinity", "model.embed_tokens.weight", "plain", [0x80, 0xff]],
    ["fp32", "model.layers.0.mlp.router.classifier.weight", "plain", [0, 0, 0xc0, 0x7f]],
    ["fp8", "model.layers.0.mlp.experts.2.down_proj.weight", "fp8", [0x7f]],
    ["a scale", "model.layers.0.mlp.experts.2.down_proj.weight_scale_inv", "fp8", [0, 0, 0x80, 0x7f]],
  ])("a value that is not finite: %s", (_, name, golden, value) => {
    const folder = files.write(golden, (tensors) => {
      const { dtype, shape, bytes } = tensors.get(name)!;
      const changed = Uint8Array.from(bytes);
      changed.set(value, changed.length - value.length);
      tensors.set(name, { dtype, shape, bytes: changed });
    });
    for (const backend of ["cpu", "ref"] as const)
      expectRefused(load(folder, "-", backend), name.replace(/_scale_inv$/, ""), "not finite");
  });

  it("fp16, and fp8 without its scales", () => {
    const half = files.write("plain", (tensors) => {
      const { shape, bytes } = tensors.get(expert)!;
      tensors.set(expert, { dtype: "F16", shape, bytes });
    });
    expectRefused(load(half), expert, "F16");
    const scale = "model.layers.0.self_attn.0.o_proj.weight_scale_inv";
    expectRefused(load(files.write("fp8", (tensors) => tensors.delete(scale))), scale, "is missing");
  });

  it("a header that is no JSON, has a tensor twice, or lies about sizes", () => {
    const withHeader = (change: (text: string) => string) => {
      const folder = files.write("plain");
      const path = join(folder, "model.safetensors");
      const file = readFileSync(path);
      const length = Number(file.readBigUInt64LE(0));
      const text = change(file.subarray(8, 8 + length).toString());
      const head = Buffer.alloc(8);
      head.writeBigUInt64LE(BigInt(Buffer.byteLength(text)));
      writeFileSync(path, Buffer.concat([head, Buffer.from(text), file.subarray(8 + length)]));
      return load(folder);
    };
    expectRefused(
      withHeader((text) => text.slice(1)),
      "the header is broken",
    );
    expectRefused(
      withHeader((text) => text.replace("model.norm.weight", "lm_head.weight")),
      "duplicate key",
    );
    expectRefused(
      withHeader((text) => text.replace("[160,96]", "[161,96]")),
      "do not fit its shape",
    );
    expectRefused(
      withHeader((text) => text.replace(/"data_offsets":\[\d+,/, '"data_offsets":[-4,')),
      "data_offsets",
    );
    expectRefused(
      withHeader((text) =>
        text.replace(/"data_offsets":\[\d+,\d+/, '"data_offsets":[9007199254740992,9223372036854775807'),
      ),
      "do not fit its shape",
    );
    expectRefused(
      withHeader((text) => text.replace("[160,96]", "[4611686018427387904,4611686018427387904]")),
      "impossible shape",
    );
    expectRefused(
      withHeader((text) => text.replace(/"shape":\[\d+\]/, '"shape":{}')),
      "a shape that is no list",
    );
    expectRefused(
      withHeader((text) => `{"deep":${"[".repeat(100_000)},${text.slice(1)}`),
      "too many levels",
    );
    expectRefused(
      withHeader((text) => `{"__metadata__":[${"0,".repeat(4_000_000)}0],${text.slice(1)}`),
      "too many values",
    );
  });

  it("a header longer than any file", () => {
    const folder = files.write("plain");
    const path = join(folder, "model.safetensors");
    const file = readFileSync(path);
    for (const length of [2n ** 63n, 2n ** 64n - 1n, 2n ** 64n - 8n]) {
      file.writeBigUInt64LE(length);
      writeFileSync(path, file);
      expectRefused(load(folder), "truncated within its header");
    }
  });

  it("a pipe where a file should be", () => {
    for (const name of ["config.json", "model.safetensors"]) {
      const folder = files.write("plain");
      rmSync(join(folder, name));
      execFileSync("mkfifo", [join(folder, name)]);
      expectRefused(load(folder), name);
    }
  });

  it("no config, no weights, a config that is no JSON", () => {
    const folder = files.write("plain");
    rmSync(join(folder, "model.safetensors"));
    expectRefused(load(folder), "model.safetensors is missing");
    writeFileSync(join(folder, "config.json"), "{");
    expectRefused(load(files.folder()), "config.json is missing");
    expectRefused(load(folder), "model.safetensors is missing");
    const bad = files.write("plain");
    writeFileSync(join(bad, "config.json"), '{"vocab_size": 160,}');
    expectRefused(load(bad), "config.json", "byte");
  });
});

describe("what a config asks for and this version lacks is refused by name", () => {
  it.each([
    ["streaming_sparse_attention", { sink_size: 128 }],
    ["dual_chunk_attention_config", { chunk_size: 8192 }],
    ["emb_neighbor_num", 4],
    ["ngram_vocab_size_ratio", 78],
    ["attention_method", "GQA"],
    ["zero_expert_type", "copy"],
    ["oe_split_num", 4],
    ["norm_topk_prob", true],
    ["index_topk", 2048],
    ["hidden_act", "gelu"],
    ["rope_parameters", { rope_type: "llama3", rope_theta: 1e4 }],
    ["rope_parameters", "yarn"],
    ["rope_parameters", { rope_type: "yarn", rope_theta: 1, factor: 4, truncate: false }],
    ["quantization_config", { quant_method: "gptq" }],
    ["moe_topk", 13],
    ["qk_rope_head_dim", 15],
    ["vocab_size", 1e12],
    ["hidden_size", "96"],
  ])("%s = %j", (key, value) => {
    const named = JSON.stringify(value).includes("llama3") ? "llama3" : key.replace("rope_parameters", "rope_");
    expectRefused(
      load(files.write("plain", (_, config) => Object.assign(config, { [key]: value }))),
      "config.json",
      named,
    );
  });

  it("a value that is missing", () => {
    expectRefused(load(files.write("plain", (_, config) => delete config.kv_lora_rank)), "kv_lora_rank is missing");
  });
});

describe("a sound checkpoint", () => {
  it("loads under the other spellings of its config with the same result", () => {
    const plain = load(files.write("plain"));
    const other = load(
      files.write("plain", (_, config) => {
        for (const key of [
          "rope_parameters",
          "num_layers",
          "moe_topk",
          "n_routed_experts",
          "ffn_hidden_size",
          "expert_ffn_hidden_size",
        ])
          delete config[key];
        Object.assign(config, { rope_theta: 10000, rope_scaling: null, num_experts_per_tok: 3, num_local_experts: 8 });
        Object.assign(config, { intermediate_size: 160, moe_intermediate_size: 64 });
      }),
    );
    expect(plain).toMatchObject({ ok: true, layout: "mla-bf16-a4-w48-b64", eos: [2], warnings: [] });
    expect(other).toMatchObject({ ok: true, logits: plain.logits });
    expect(other.hash).not.toBe(plain.hash);
  });

  it("is another model to its peers under another eps of the latent norm", () => {
    const folder = files.write("plain");
    const plain = load(folder);
    const other = load(folder, "-", "cpu", 0.125);
    expect(other.logits).not.toBe(plain.logits);
    expect(other.hash).not.toBe(plain.hash);
    const { rms_norm_eps } = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
    expect(load(folder, "-", "cpu", rms_norm_eps ?? 1e-5)).toEqual(plain);
  });

  it("takes yarn in both spellings and names", () => {
    const yarn = load(files.write("yarn"));
    const older = load(
      files.write("yarn", (_, config) => {
        const { rope_type, rope_theta, ...rest } = config.rope_parameters as Record<string, unknown>;
        expect(rope_type).toBe("yarn");
        delete config.rope_parameters;
        Object.assign(config, { rope_theta, rope_scaling: { type: "deepseek_yarn", ...rest } });
      }),
    );
    expect(older).toMatchObject({ ok: true, logits: yarn.logits });
    expect(load(files.write("yarn", (_, config) => delete config.rope_parameters)).logits).not.toBe(yarn.logits);
  });

  it("warns of a tensor that nothing uses", () => {
    const folder = files.write("plain", (tensors) =>
      tensors.set("model.rotary.inv_freq", { dtype: "I64", shape: [1], bytes: new Uint8Array(8) }),
    );
    const loaded = load(folder);
    expect(loaded.ok).toBe(true);
    expect(loaded.warnings?.join()).toContain("model.rotary.inv_freq");
  });

  it("has end tokens of both files", () => {
    const folder = files.write("plain", (_, config) => Object.assign(config, { eos_token_id: [2, 7] }));
    writeFileSync(join(folder, "generation_config.json"), '{"eos_token_id": 9}');
    expect(load(folder).eos).toEqual([2, 7, 9]);
  });

  it("computes biases of attention and router where the config says so", () => {
    const withBias = (value: number) =>
      files.write("plain", (tensors, config) => {
        Object.assign(config, { attention_bias: true, router_bias: true });
        const add = (name: string, size: number) =>
          tensors.set(name, {
            dtype: "F32",
            shape: [size],
            bytes: new Uint8Array(new Float32Array(size).fill(value).buffer),
          });
        for (const layer of [0, 1]) {
          add(`model.layers.${layer}.mlp.router.classifier.bias`, 12);
          for (const half of [0, 1]) {
            const stem = `model.layers.${layer}.self_attn.${half}.`;
            add(`${stem}q_a_proj.bias`, 48);
            add(`${stem}kv_a_proj_with_mqa.bias`, 48);
            add(`${stem}o_proj.bias`, 96);
          }
        }
      });
    const plain = load(files.write("plain"));
    expect(load(withBias(0))).toMatchObject({ ok: true, logits: plain.logits });
    expect(load(withBias(0.5)).logits).not.toBe(plain.logits);
    expectRefused(
      load(files.write("plain", (_, config) => Object.assign(config, { router_bias: true }))),
      "router.classifier.bias",
    );
  });

  it("may be tied: the head is the embedding where it is absent", () => {
    const tied = load(
      files.write("plain", (tensors, config) => {
        tensors.delete("lm_head.weight");
        Object.assign(config, { tie_word_embeddings: true });
      }),
    );
    const copied = load(
      files.write("plain", (tensors) => tensors.set("lm_head.weight", tensors.get("model.embed_tokens.weight")!)),
    );
    expect(tied).toMatchObject({ ok: true, logits: copied.logits });
  });

  it("may carry a draft layer, which is checked", () => {
    const nano = fileURLToPath(new URL("../../models/nano", import.meta.url));
    const tensors = readTensors(join(nano, "model.safetensors"));
    const folder = files.folder();
    writeFileSync(join(folder, "config.json"), readFileSync(join(nano, "config.json")));
    const write = (change: (tensors: Tensors) => void) => {
      const changed = new Map(tensors);
      change(changed);
      writeTensors(join(folder, "model.safetensors"), changed);
      return load(folder);
    };
    expect(write(() => {})).toMatchObject({ ok: true, warnings: [] });
    expectRefused(
      write((t) => t.delete("model.mtp.norm.weight")),
      "model.mtp.norm.weight",
    );
    const without = write((t) => {
      for (const name of tensors.keys()) if (name.startsWith("model.mtp.")) t.delete(name);
    });
    expect(without).toMatchObject({ ok: true, warnings: [] });
  });
});

describe("shards", () => {
  const shard = (change: (map: Record<string, string>, shards: readonly [Tensors, Tensors]) => void): LoadedWeights => {
    const folder = files.write("plain");
    const all = [...readTensors(join(folder, "model.safetensors"))];
    rmSync(join(folder, "model.safetensors"));
    const shards = [new Map(all.slice(0, 40)), new Map(all.slice(40))] as const;
    const map: Record<string, string> = {};
    shards.forEach((tensors, i) => {
      for (const name of tensors.keys()) map[name] = `model-${i}.safetensors`;
    });
    change(map, shards);
    shards.forEach((tensors, i) => {
      if (tensors.size > 0) writeTensors(join(folder, `model-${i}.safetensors`), tensors);
    });
    writeFileSync(join(folder, "model.safetensors.index.json"), JSON.stringify({ metadata: {}, weight_map: map }));
    return load(folder);
  };

  it("are the same model as one file", () => {
    const { hash, logits } = load(files.write("plain"));
    expect(shard(() => {})).toMatchObject({ ok: true, hash, logits });
  });

  it("are refused when a file or a tensor that the index names is not there", () => {
    expectRefused(
      shard((_, [first]) => first.clear()),
      "model-0.safetensors is missing",
    );
    expectRefused(
      shard((_, shards) => shards[1].delete(expert)),
      expert,
      "is missing",
    );
    expectRefused(
      shard((map) => Object.assign(map, { [expert]: "../elsewhere.safetensors" })),
      "outside the folder",
    );
  });
});
