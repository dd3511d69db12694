import { copyFileSync, mkdtempSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { NANO } from "./dialogues.ts";

/** Header of a safetensors file: places of tensors within the data after it. */
export type TensorPlaces = Readonly<Record<string, { readonly data_offsets: readonly [number, number] }>>;

/** A copy of nano with another config, and bytes of its tensors patched, in a folder that is the caller's to remove. */
export function nanoVariant(
  config: object,
  patch: ((weights: Buffer, tensors: TensorPlaces) => void) | null = null,
): string {
  const folder = mkdtempSync(join(tmpdir(), "margay-nano-"));
  const original = JSON.parse(readFileSync(join(NANO, "config.json"), "utf8"));
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...original, ...config }));
  copyFileSync(join(NANO, "generation_config.json"), join(folder, "generation_config.json"));
  if (patch === null) {
    symlinkSync(join(NANO, "model.safetensors"), join(folder, "model.safetensors"));
  } else {
    const weights = readFileSync(join(NANO, "model.safetensors"));
    const header = Number(weights.readBigUInt64LE(0));
    patch(weights.subarray(8 + header), JSON.parse(weights.toString("utf8", 8, 8 + header)));
    writeFileSync(join(folder, "model.safetensors"), weights);
  }
  return folder;
}

/** A step that takes this token in computes a logit that is no number: of this output, which nothing else asks for. */
export const POISON = { token: 77, output: 5 } as const;

/**
 * Token 77 is one huge coordinate, and row 5 of the output layer overflows on it, and on no ordinary text. A sequence that
 * biases output 5 away differs in nothing else from one of nano.
 */
export function poisonedNano(): string {
  const hidden = 192;
  return nanoVariant({}, (data, tensors) => {
    for (const [name, index, bits] of [
      ["model.embed_tokens.weight", POISON.token, 0x5d5e],
      ["lm_head.weight", POISON.output, 0x7e4c],
    ] as const) {
      const begin = tensors[name]!.data_offsets[0] + index * hidden * 2;
      data.fill(0, begin, begin + hidden * 2);
      data.writeUInt16LE(bits, begin);
    }
  });
}
