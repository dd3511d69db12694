import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { UsageListResponse } from "../../control-plane/gateway/response-schema.ts";
import { KeysFile, keyFor } from "../support/keys-file.ts";
import { runCli, type System, startSystem, waitFor } from "../support/system.ts";

/** The process id of the control plane that `margay up` runs. */
async function controlPlaneOf({ pid }: System): Promise<number> {
  const children = await readFile(`/proc/${pid}/task/${pid}/children`, "utf8");
  for (const child of children.trim().split(" ")) {
    if ((await readFile(`/proc/${child}/cmdline`, "utf8")).includes("control-plane/main.ts")) return Number(child);
  }
  throw new Error("no control plane runs");
}

/** Keys, limits and ledger in the whole system, with real processes. */
test("tenants: a key is asked for, what is used is written down and outlives the control plane, and equals what clients were told", async () => {
  const [acme, admin] = [keyFor("acme"), keyFor("other", { admin: true })];
  const content = {
    tenants: { acme: { limits: { tokensPerMinute: 1_000_000, concurrency: 8 } }, other: {} },
    keys: [acme.line, admin.line],
    prices: { currency: "USD", models: { nano: { input: "1", output: "2" } } },
  };
  await using file = await KeysFile.with(content);
  const system = await startSystem({ MARGAY_KEYS_FILE: file.path });
  let { url } = system;
  try {
    const as = ({ key }: { readonly key: string }) => ({
      "content-type": "application/json",
      authorization: `Bearer ${key}`,
    });
    const ask = async (content: string) => {
      const messages = [{ role: "user", content }];
      const body = JSON.stringify({ model: "nano", max_tokens: 12, messages });
      return await fetch(`${url}/v1/chat/completions`, { method: "POST", headers: as(acme), body });
    };
    expect((await fetch(`${url}/v1/models`)).status).toBe(401);
    const told = { input: 0, cached: 0, output: 0 };
    for (let i = 0; i < 12; i++) {
      const answer = await ask(`What is ${i} + 3?`);
      expect(answer.status, await answer.clone().text()).toBe(200);
      expect(answer.headers.get("x-ratelimit-limit-tokens")).toBe("1000000");
      const { usage } = (await answer.json()) as {
        usage: {
          prompt_tokens: number;
          completion_tokens: number;
          prompt_tokens_details: { cached_tokens: number };
        };
      };
      told.input += usage.prompt_tokens;
      told.cached += usage.prompt_tokens_details.cached_tokens;
      told.output += usage.completion_tokens;
    }
    const rows = async () => {
      const answer = await fetch(`${url}/v1/usage`, { headers: as(admin) });
      return answer.ok ? UsageListResponse.parse(await answer.json()).data : [];
    };
    const row = async () => (await rows().catch(() => [])).find(({ tenant }) => tenant === "acme");
    await waitFor("the ledger", async () => ((await row())?.requests === 12 ? true : null), 20_000, system.log);
    const expected = {
      ...{ requests: 12, failed_requests: 0, input_tokens: told.input, input_cached_tokens: told.cached },
      ...{ output_tokens: told.output, cost_micros: told.input + 2 * told.output },
    };
    const before = await row();
    expect(before).toMatchObject(expected);
    expect(before!.prefill_gpu_seconds).toBeGreaterThan(0);
    expect(before!.decode_gpu_seconds).toBeGreaterThan(0);

    process.kill(await controlPlaneOf(system), "SIGKILL");
    await waitFor(
      "the control plane to be back",
      async () => {
        url = (JSON.parse(await readFile(join(system.stateFolder, "run.json"), "utf8")) as { url: string }).url;
        return (await fetch(`${url}/readyz`).catch(() => null))?.ok === true ? true : null;
      },
      30_000,
      system.log,
    );
    expect(await row()).toEqual(before);
    const settings = { PATH: process.env.PATH ?? "", MARGAY_STATE_DIR: system.stateFolder };
    const sent = await runCli(["send", "--max-tokens", "4", "Hi"], { ...settings, MARGAY_API_KEY: acme.key });
    expect(sent.code, sent.stderr).toBe(0);
    expect((await runCli(["send", "Hi"], settings)).stderr).toContain("An API key is needed");
    await file.write({ ...content, keys: [admin.line] });
    await waitFor(
      "the key to be revoked",
      async () => ((await ask("Hi")).status === 401 ? true : null),
      20_000,
      system.log,
    );
    expect(system.log()).not.toContain(acme.key);
  } finally {
    expect(await system.stop()).toBe(0);
  }
}, 120_000);
