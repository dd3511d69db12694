import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import type { ModelName } from "#protocol/ids.ts";
import { loadServedModel } from "../../control-plane/chat/served-model.ts";
import { CheckpointError } from "../../control-plane/tokenizer/checkpoint-file.ts";
import { NANO, nanoModel } from "../support/dialogues.ts";

/** A copy of the bundled checkpoint's text files with some fields changed; undefined takes a field out. */
function changed(file: string, fields: Readonly<Record<string, unknown>>): string {
  const folder = mkdtempSync(join(tmpdir(), "margay-model-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  for (const name of ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]) {
    cpSync(join(NANO, name), join(folder, name));
  }
  const json = JSON.parse(readFileSync(join(folder, file), "utf8"));
  writeFileSync(join(folder, file), JSON.stringify({ ...json, ...fields }));
  return folder;
}
const load = (folder: string) => loadServedModel("m" as ModelName, folder);

describe("a checkpoint", () => {
  test("tells its context, vocabulary, end tokens and defaults", async () => {
    const model = await nanoModel();
    expect(model).toMatchObject({ name: "nano", folder: NANO, contextLength: 4096, vocabSize: 2048, eosTokens: [2] });
    expect(model.defaults).toEqual({
      temperature: 0.3,
      topP: 0.95,
      topK: null,
      minP: null,
      maxNewTokens: 512,
      repetitionPenalty: null,
    });
    expect(model.created).toBeGreaterThan(1_600_000_000);
    expect(model.template).not.toBeNull();
  });

  test("that asks for greedy decoding has temperature 0; top_k -1 keeps all", async () => {
    const fields = { do_sample: false, top_k: -1, min_p: 0.1, repetition_penalty: 1.06 };
    const { defaults } = await load(changed("generation_config.json", fields));
    expect(defaults).toMatchObject({ temperature: 0, topK: 0, minP: 0.1, repetitionPenalty: 1.06 });
  });

  test("may have several end tokens, and no generation_config.json", async () => {
    expect((await load(changed("generation_config.json", { eos_token_id: [2, 3] }))).eosTokens).toEqual([2, 3]);
    const folder = changed("config.json", { eos_token_id: [3] });
    rmSync(join(folder, "generation_config.json"));
    expect(await load(folder)).toMatchObject({ eosTokens: [3], defaults: { temperature: null, maxNewTokens: null } });
  });

  test("without a template file takes the one in tokenizer_config.json, or none", async () => {
    expect((await load(changed("config.json", {}))).template).not.toBeNull();
    expect((await load(changed("tokenizer_config.json", { chat_template: undefined }))).template).toBeNull();
  });
});

describe("a broken checkpoint is refused in one sentence with file and field", () => {
  test.each([
    ["config.json", { max_position_embeddings: undefined }, /config\.json: max_position_embeddings is not valid/],
    ["config.json", { vocab_size: "many" }, /config\.json: vocab_size is not valid/],
    ["config.json", { vocab_size: 1000 }, /tokenizer\.json: token 2047 is not below vocab_size 1000\.$/],
    [
      "generation_config.json",
      { eos_token_id: 2048 },
      /generation_config\.json: eos_token_id 2048 is not below vocab_size 2048\.$/,
    ],
    ["generation_config.json", { temperature: -1 }, /generation_config\.json: temperature is not valid/],
    ["tokenizer.json", { model: null }, /tokenizer\.json: model is not what/],
  ])("%s %j", async (file, fields, message) => {
    const loading = load(changed(file, fields));
    await expect(loading).rejects.toThrow(message);
    await expect(loading).rejects.toBeInstanceOf(CheckpointError);
  });

  test("no folder, no tokenizer, no end token", async () => {
    await expect(load("/no/such/folder")).rejects.toThrow("/no/such/folder/config.json does not exist.");
    const folder = changed("config.json", { eos_token_id: undefined });
    writeFileSync(join(folder, "generation_config.json"), "{}");
    await expect(load(folder)).rejects.toThrow(/config\.json: eos_token_id is missing\.$/);
    const bare = changed("config.json", {});
    rmSync(join(bare, "tokenizer.json"));
    await expect(load(bare)).rejects.toThrow(/tokenizer\.json does not exist\.$/);
  });
});
