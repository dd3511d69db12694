import { fileURLToPath } from "node:url";
import { beforeAll, expect, it } from "vitest";
import { goldenFolder } from "../support/checkpoint-files.ts";
import { buildNativePrograms, runNativeProgram } from "../support/native-program.ts";

beforeAll(() => buildNativePrograms(), 20 * 60_000);

const nano = fileURLToPath(new URL("../../models/nano", import.meta.url));

it("the thread pool keeps every promise", () => {
  const { status, stdout } = runNativeProgram("thread_pool", []);
  const claims = stdout.trim().split("\n");
  expect(claims.filter((claim) => !claim.startsWith("ok: "))).toEqual([]);
  expect(claims).toHaveLength(9);
  expect(status).toBe(0);
});

it.each([
  ["nano", nano],
  ["fp8", goldenFolder("fp8")],
])("no step of %s allocates memory, on any code path, drafts included", (_, folder) => {
  const { status, stdout } = runNativeProgram("step_allocations", [folder]);
  const claims = stdout.trim().split("\n");
  expect(claims.filter((claim) => !claim.startsWith("ok: "))).toEqual([]);
  expect(claims.length).toBeGreaterThanOrEqual(3);
  expect(status).toBe(0);
});
