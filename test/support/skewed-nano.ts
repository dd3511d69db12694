import { cpSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readTensors, writeTensors } from "./checkpoint-files.ts";
import { NANO } from "./dialogues.ts";

/** Above any score of a router, which are shares of one. */
const ALWAYS = 10;

/**
 * A copy of nano in a folder of its own, to be removed by the caller: in every layer `hottest` is chosen by all tokens, and
 * whatever else they choose is one of `hot`.
 */
export function skewedNano(hottest: number, hot: readonly number[]): string {
  const folder = mkdtempSync(join(tmpdir(), "margay-skewed-"));
  cpSync(NANO, folder, { recursive: true });
  const path = join(folder, "model.safetensors");
  const tensors = readTensors(path);
  for (const [name, tensor] of tensors) {
    if (!name.endsWith("e_score_correction_bias")) continue;
    const bytes = new Uint8Array(tensor.bytes.length);
    const view = new DataView(bytes.buffer);
    for (const expert of hot) view.setFloat32(4 * expert, ALWAYS, true);
    view.setFloat32(4 * hottest, 2 * ALWAYS, true);
    tensors.set(name, { ...tensor, bytes });
  }
  writeTensors(path, tensors);
  return folder;
}
