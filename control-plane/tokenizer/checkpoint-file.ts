import { readFile } from "node:fs/promises";
import { join } from "node:path";

/** A checkpoint folder that cannot be served. The message is one sentence that names file and field. */
export class CheckpointError extends Error {
  override readonly name = "CheckpointError";
}

/** Text of `file` in a checkpoint folder; null where there is no such file. */
export async function readCheckpointText(folder: string, file: string): Promise<string | null> {
  try {
    return await readFile(join(folder, file), "utf8");
  } catch (cause) {
    if (cause instanceof Error && "code" in cause && cause.code === "ENOENT") return null;
    const why = cause instanceof Error && "code" in cause ? String(cause.code) : "unreadable";
    throw new CheckpointError(`${join(folder, file)} cannot be read (${why}).`, { cause });
  }
}

/** The JSON object in `file`; null where there is no such file. Throws `CheckpointError` when it is anything else. */
export async function readCheckpointJson(folder: string, file: string): Promise<Record<string, unknown> | null> {
  const text = await readCheckpointText(folder, file);
  if (text === null) return null;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new CheckpointError(`${join(folder, file)} is not valid JSON.`, { cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new CheckpointError(`${join(folder, file)} must hold a JSON object.`);
  }
  return value as Record<string, unknown>;
}
