// What the scripts that run before anything is installed have in common: speaking to the terminal, finding programs.
import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";

export function say(text) {
  process.stderr.write(`margay: ${text}\n`);
}

export function fail(text) {
  say(text);
  process.exit(1);
}

/** Path of a program on PATH, or null. */
export function onPath(program) {
  for (const folder of (process.env.PATH ?? "").split(delimiter)) {
    if (folder !== "" && existsSync(join(folder, program))) return join(folder, program);
  }
  return null;
}
