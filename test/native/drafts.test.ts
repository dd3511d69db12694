import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CheckpointFiles, type FileTensor, goldenFolder, type Tensors } from "../support/checkpoint-files.ts";
import { fakeRandom } from "../support/fake-clock.ts";
import { buildNativePrograms, nativeReport } from "../support/native-program.ts";

/** One line of native/tests/drafts.cc, which says what the fields mean. */
interface Line {
  readonly path: string;
  readonly chunk: number;
  readonly max_diff: number;
  readonly argmax_wrong: number;
  readonly rows: number;
  readonly same_as_whole: boolean;
}

const nano = fileURLToPath(new URL("../../models/nano", import.meta.url));
const files = new CheckpointFiles();
beforeAll(() => buildNativePrograms(), 20 * 60_000);
afterAll(() => files.remove());

/** Adds a draft layer of random values, with an embedding of its own. */
function addDraftLayer(tensors: Tensors, config: Record<string, number>): void {
  const random = fakeRandom(31);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random.uniform())) * Math.cos(2 * Math.PI * random.uniform());
  const add = (name: string, ...shape: readonly number[]) => {
    const values = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () =>
      shape.length === 1 ? 1 + 0.2 * normal() : (0.6 / Math.sqrt(shape.at(-1)!)) * normal(),
    );
    const tensor: FileTensor = { dtype: "F32", shape, bytes: new Uint8Array(values.buffer) };
    tensors.set(`model.mtp.${name}.weight`, tensor);
  };
  const size = (name: string) => config[name]!;
  const [vocab, hidden, ffn, heads] = [
    size("vocab_size"),
    size("hidden_size"),
    size("ffn_hidden_size"),
    size("num_attention_heads"),
  ];
  const [qLora, kvLora, nope, rope] = [
    size("q_lora_rank"),
    size("kv_lora_rank"),
    size("qk_nope_head_dim"),
    size("qk_rope_head_dim"),
  ];
  const vHead = size("v_head_dim");
  const layer = "layers.0.";
  add("embed_tokens", vocab, hidden);
  for (const norm of ["enorm.m", "hnorm.m", "input_layernorm", "post_attention_layernorm"]) add(layer + norm, hidden);
  add(`${layer}eh_proj`, hidden, 2 * hidden);
  add(`${layer}self_attn.q_a_proj`, qLora, hidden);
  add(`${layer}self_attn.q_a_layernorm`, qLora);
  add(`${layer}self_attn.q_b_proj`, heads * (nope + rope), qLora);
  add(`${layer}self_attn.kv_a_proj_with_mqa`, kvLora + rope, hidden);
  add(`${layer}self_attn.kv_a_layernorm`, kvLora);
  add(`${layer}self_attn.kv_b_proj`, heads * (nope + vHead), kvLora);
  add(`${layer}self_attn.o_proj`, hidden, heads * vHead);
  add(`${layer}transformer_layer.mlp.gate_proj`, ffn, hidden);
  add(`${layer}transformer_layer.mlp.up_proj`, ffn, hidden);
  add(`${layer}transformer_layer.mlp.down_proj`, hidden, ffn);
  add("norm", hidden);
  config.num_nextn_predict_layers = 1;
}

describe.each([
  // Logits of nano are an order of magnitude larger, as in goldens.test.ts.
  { name: "nano's draft layer, as recorded", mode: "recorded", cuts: 4, rows: 100, tolerance: 1e-1 },
  {
    name: "a random draft layer that is fed again, in plain double precision",
    mode: "plain",
    cuts: 1,
    rows: 18,
    tolerance: 3e-2,
  },
])("$name", ({ mode, cuts, rows, tolerance }) => {
  let lines: readonly Line[] = [];
  beforeAll(() => {
    const [folder, golden] =
      mode === "recorded"
        ? [nano, join(nano, "golden.safetensors")]
        : [
            files.write("plain", (tensors, config) => addDraftLayer(tensors, config as Record<string, number>)),
            join(goldenFolder("plain"), "golden.safetensors"),
          ];
    lines = nativeReport("drafts", [mode, folder, golden]) as readonly Line[];
  }, 120_000);

  it("ref is within 1e-4, with the same arg-max", () => {
    const ref = lines.filter((line) => line.path === "ref");
    expect(ref).toHaveLength(cuts);
    for (const line of ref) {
      expect(line.max_diff).toBeLessThan(1e-4);
      expect(line.argmax_wrong).toBe(0);
      expect(line.rows).toBeGreaterThanOrEqual(rows);
    }
  });

  it(`cpu is within ${tolerance} on every code path, with ref's choice of experts`, () => {
    const cpu = lines.filter((line) => line.path !== "ref");
    expect(cpu.map((line) => line.path)).toContain("generic");
    for (const line of cpu) {
      expect(line.max_diff).toBeLessThan(tolerance);
      expect(line.argmax_wrong).toBe(0);
    }
  });

  it("every path gives the same bits however the prompt is cut", () => {
    for (const line of lines) expect(line, `${line.path}, chunk ${line.chunk}`).toMatchObject({ same_as_whole: true });
  });
});
