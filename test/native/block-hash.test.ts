import { beforeAll, describe, expect, test } from "vitest";
import { blockHashes } from "#protocol/block-hash.ts";
import { buildNativePrograms, runNativeProgram } from "../support/native-program.ts";

beforeAll(() => buildNativePrograms(), 20 * 60_000);

/** The tokens that native/tests/kv_pool.cc hashes. */
const tokensOf = (count: number) =>
  Int32Array.from({ length: count }, (_, i) => Number((BigInt(i) * 2654435761n) % 2147483648n));

function nativeHashes(model: string, count: number): string[] {
  const run = runNativeProgram("kv_pool", ["hashes", model, String(count)]);
  expect(run.status).toBe(0);
  return run.stdout.split("\n").filter((line) => line !== "");
}

describe("native and TypeScript name the same content by the same hashes", () => {
  test.each([
    ["", 64],
    ["0123456789abcdef", 63],
    ["0123456789abcdef", 1_000],
    ["a model hash of more than one SHA-256 block: ".repeat(3), 128],
    ["größe", 200],
  ])("model hash %j, %i tokens", (model, count) => {
    const hashes = blockHashes(model, tokensOf(count)).map((hash) => Buffer.from(hash, "latin1").toString("hex"));
    expect(hashes.length).toBe(Math.floor(count / 64));
    expect(nativeHashes(model, count)).toEqual(hashes);
  });
});
