import { fileURLToPath } from "node:url";
import { beforeAll, describe, expect, it } from "vitest";
import { goldenFolder } from "../support/checkpoint-files.ts";
import { buildNativePrograms, runNativeProgram } from "../support/native-program.ts";

beforeAll(() => buildNativePrograms(), 20 * 60_000);

const nano = fileURLToPath(new URL("../../models/nano", import.meta.url));

describe.each([
  ["nano", nano],
  ["fp8", goldenFolder("fp8")],
])("deterministic mode on %s", (_, folder) => {
  it("gives a sequence's bits whatever the batch, the cut into steps and the threads", () => {
    const { status, stdout } = runNativeProgram("deterministic", [folder]);
    const claims = stdout.trim().split("\n");
    expect(claims.filter((claim) => !claim.startsWith("ok: "))).toEqual([]);
    expect(claims.length % 8).toBe(0);
    expect(claims.filter((claim) => claim.startsWith("ok: ref: "))).toHaveLength(8);
    expect(claims.filter((claim) => claim.startsWith("ok: generic: "))).toHaveLength(8);
    expect(status).toBe(0);
  }, 300_000);
});
