import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));

/** What the compiler finds wrong, without the frames around it. */
function faultsOf(project: string): string {
  const compiler = join(root, "node_modules/typescript/bin/tsc");
  const options = { cwd: root, encoding: "utf8", timeout: 170_000 } as const;
  const done = spawnSync(process.execPath, [compiler, "--noEmit", "-p", project], options);
  return done.error?.message ?? `${done.stdout}${done.stderr}`.trim();
}

test.each([
  ["the code is of the types it says", "."],
  ["the console's too", "control-plane/console"],
  ["answers and stream events are what the clients' own types take them for", "test/published"],
])("%s", (_, project) => {
  expect(faultsOf(project)).toBe("");
});
