import { execFile } from "node:child_process";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

/** `bin/setup.mjs` where it has done its work already, as before every `npm test`. */

const root = fileURLToPath(new URL("../..", import.meta.url));

function setup(...argv: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const child = execFile(process.execPath, ["bin/setup.mjs", ...argv], { cwd: root }, (_error, stdout, stderr) =>
      resolve({ code: child.exitCode ?? -1, stdout, stderr }),
    );
  });
}

/** What a setup makes, with the time of its last change. */
async function made(): Promise<ReadonlyMap<string, number>> {
  const files = ["node_modules/.package-lock.json", "native/build/margay.node", ".margay/bin/nats-server"];
  const found = new Map<string, number>();
  for (const file of files) {
    const known = await stat(join(root, file)).catch(() => null);
    if (known !== null) found.set(file, known.mtimeMs);
  }
  return found;
}

test("a second setup says nothing and changes nothing", async () => {
  const before = await made();
  expect(before.has("native/build/margay.node")).toBe(true);
  const packages = (await readdir(join(root, "node_modules"))).length;
  expect(await setup()).toEqual({ code: 0, stdout: "", stderr: "" });
  expect(await made()).toEqual(before);
  expect((await readdir(join(root, "node_modules"))).length).toBe(packages);
});

test("an unknown command is told with the known ones, before anything is done", async () => {
  const { code, stdout, stderr } = await setup("strat");
  expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
  expect(stderr).toBe("margay: unknown command strat; one of setup, start, margay, test, bench, soak, panels\n");
});

test("arguments reach the command it prepares, and its exit code comes back", async () => {
  const help = await setup("margay", "--help");
  expect(help.code).toBe(0);
  expect(help.stdout).toMatch(/^margay up /);
  const wrong = await setup("margay", "destroy");
  expect(wrong.code).toBe(2);
  expect(wrong.stderr).toBe("margay: unknown command destroy\n");
});
