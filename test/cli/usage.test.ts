import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { runCli } from "../support/system.ts";

/** How a command is called, and commands that find no system. */

let stateFolder: string;
let environment: Record<string, string>;

beforeAll(async () => {
  stateFolder = await mkdtemp(join(tmpdir(), "margay-test-"));
  environment = { PATH: process.env.PATH ?? "", MARGAY_STATE_DIR: stateFolder };
});
afterAll(() => rm(stateFolder, { recursive: true }));

describe("mistakes in how a command is called end with 2 and one sentence", () => {
  test.each([
    [["destroy"], /unknown command destroy/],
    [["status", "--loud"], /--loud/],
    [["send"], /send needs a question/],
    [["send", "--max-tokens", "many", "Hi"], /--max-tokens must be a number/],
    [["send", "--temperature", "", "Hi"], /--temperature must be a number/],
    [["send", "--think", "--no-think", "Hi"], /--think and --no-think exclude each other/],
    [["up", "8000"], /up takes no argument/],
    [["status", "decode-1"], /status takes no argument/],
    [["drain"], /drain needs the name of one worker/],
    [["drain", "a", "b"], /drain needs the name of one worker/],
    [["trace", "a", "b"], /trace writes to one file/],
    [["trace", "--seconds", "long"], /--seconds must be a number/],
    [["trace", "--seconds", "60"], /--seconds must be more than 0 and at most 10/],
  ])("%j", async (argv, sentence) => {
    const { code, stdout, stderr } = await runCli(argv, environment);
    expect(stderr).toMatch(sentence);
    expect(stderr.trim().split("\n")).toHaveLength(1);
    expect(stdout).toBe("");
    expect(code).toBe(2);
  });

  test("no command at all shows them all", async () => {
    const { code, stdout } = await runCli([], environment);
    expect(stdout).toMatch(/margay up[\s\S]*margay status[\s\S]*margay send[\s\S]*margay drain/);
    expect(code).toBe(2);
  });
});

test("--help shows all commands and ends with 0", async () => {
  const { code, stdout, stderr } = await runCli(["--help"], environment);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toMatch(/margay up[\s\S]*margay drain/);
});

test.each([["status"], ["send", "Hi"], ["drain", "decode-1"], ["trace"]])(
  "%s says that nothing is running, and how to start it",
  async (...argv) => {
    const { code, stderr } = await runCli(argv, environment);
    expect(stderr).toBe("margay: Margay is not running here; start it with `npm start`\n");
    expect(code).toBe(1);
  },
);
