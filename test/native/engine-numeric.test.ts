import { beforeAll, expect, it } from "vitest";
import { buildNativePrograms, runNativeProgram } from "../support/native-program.ts";

beforeAll(() => buildNativePrograms(), 20 * 60_000);

it("rows that gave no number are never shared", () => {
  const { status, stdout } = runNativeProgram("engine_numeric", []);
  const claims = stdout.trim().split("\n");
  expect(claims.filter((claim) => !claim.startsWith("ok: "))).toEqual([]);
  expect(claims).toHaveLength(2);
  expect(status).toBe(0);
});
