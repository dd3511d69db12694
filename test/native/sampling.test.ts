import { beforeAll, expect, it } from "vitest";
import { buildNativePrograms, runNativeProgram } from "../support/native-program.ts";

beforeAll(() => buildNativePrograms(), 20 * 60_000);

it("the native choice of tokens keeps every promise", () => {
  const { status, stdout } = runNativeProgram("sampling", []);
  const claims = stdout.trim().split("\n");
  expect(claims.filter((claim) => !claim.startsWith("ok: "))).toEqual([]);
  expect(claims.filter((claim) => claim.startsWith("ok: generic: "))).toHaveLength(14);
  expect(claims.length % 14).toBe(0);
  expect(status).toBe(0);
});
