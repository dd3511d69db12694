import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { nativeReport } from "./native-program.ts";

/** A tensor of a safetensors file: raw bytes, little endian. */
export interface FileTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

export type Tensors = Map<string, FileTensor>;

export const goldenFolder = (name: string): string =>
  fileURLToPath(new URL(`../fixtures/goldens/${name}`, import.meta.url));

export function readTensors(path: string): Tensors {
  const file = readFileSync(path);
  const headerBytes = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.subarray(8, 8 + headerBytes).toString()) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors: Tensors = new Map();
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [begin, end] = entry.data_offsets;
    tensors.set(name, {
      dtype: entry.dtype,
      shape: entry.shape,
      bytes: file.subarray(8 + headerBytes + begin, 8 + headerBytes + end),
    });
  }
  return tensors;
}

export function writeTensors(path: string, tensors: Tensors): void {
  const header: Record<string, unknown> = {};
  let offset = 0;
  for (const [name, { dtype, shape, bytes }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + bytes.length] };
    offset += bytes.length;
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([length, text, ...[...tensors.values()].map(({ bytes }) => bytes)]));
}

/** Copies of golden checkpoints in a scratch folder, each changed before it is written. */
export class CheckpointFiles {
  readonly scratch = mkdtempSync(join(tmpdir(), "margay-weights-"));
  #count = 0;

  folder(): string {
    const path = join(this.scratch, String(this.#count++));
    mkdirSync(path);
    return path;
  }

  /** A folder with the golden checkpoint `name`, after `change` had its way with config and tensors. */
  write(name: string, change: (tensors: Tensors, config: Record<string, unknown>) => void = () => {}): string {
    const folder = this.folder();
    const tensors = readTensors(join(goldenFolder(name), "model.safetensors"));
    const config = JSON.parse(readFileSync(join(goldenFolder(name), "config.json"), "utf8")) as Record<string, unknown>;
    change(tensors, config);
    writeFileSync(join(folder, "config.json"), JSON.stringify(config));
    writeTensors(join(folder, "model.safetensors"), tensors);
    return folder;
  }

  remove(): void {
    rmSync(this.scratch, { recursive: true, force: true });
  }
}

/** What native/tests/weights.cc prints. */
export interface LoadedWeights {
  readonly ok: boolean;
  readonly code?: string;
  readonly message?: string;
  readonly hash?: string;
  readonly hit?: boolean;
  readonly bytes?: number;
  readonly layout?: string;
  readonly eos?: readonly number[];
  readonly warnings?: readonly string[];
  readonly logits?: string;
}

/** Loads a checkpoint in a process of its own. `packed`: the folder of packed weights, "-" for none. */
export function loadWeights(
  folder: string,
  packed = "-",
  backend: "ref" | "cpu" = "cpu",
  latentNormEps: number | null = null,
): LoadedWeights {
  const eps = latentNormEps === null ? [] : [String(latentNormEps)];
  return nativeReport("weights", [folder, packed, backend, ...eps])[0] as LoadedWeights;
}
