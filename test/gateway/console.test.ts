import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { FleetResponse } from "#protocol/fleet-view.ts";
import type { GatewayId, ModelName, RequestId } from "#protocol/ids.ts";
import type { StatusReport } from "#protocol/operator.ts";
import { RequestListResponse } from "#protocol/timeline.ts";
import { NO_RANK_WORK } from "#protocol/worker.ts";
import type { Way } from "../../control-plane/flow/way.ts";
import type { OperatorView } from "../../control-plane/gateway/fleet-view.ts";
import { answering } from "../support/fake-flow.ts";
import { beatOf, freeBlocks } from "../support/fleet-of.ts";
import { nanoModel, startHarness } from "../support/gateway-harness.ts";
import { KeysFile, keyFor, tenancyOf } from "../support/keys-file.ts";

const { tokenizer } = await nanoModel();
const hello = answering(tokenizer.encode("Hello you."));
const folder = fileURLToPath(new URL("../../control-plane/console/", import.meta.url));
const bearer = (key: string) => ({ headers: { authorization: `Bearer ${key}` } });

function rankStatus(name: string): StatusReport["ranks"][number] {
  const { workerId, rankId, role, epoch, pid, healthUrl } = beatOf(name);
  return {
    ...{ workerId, rankId, role, epoch, pid, healthUrl, rank: 0, ranks: 1, group: null, state: "ready" },
    ...{ model: "nano" as ModelName, requests: 1, maxRequests: 8, blocksTotal: 10, blocksAvailable: 10 },
    ...{ blocks: freeBlocks(10), kvBytesMoved: 4096, pendingPrefillTokens: 7, work: NO_RANK_WORK, lastBeatMs: 20 },
  };
}

const operatorOf = (ranks: StatusReport["ranks"]): OperatorView => ({
  status: () => ({
    kind: "status-report",
    gatewayId: "gw-test" as GatewayId,
    upMs: 5,
    ranks,
    models: [{ name: "nano" as ModelName, waiting: 2, running: 3, wantedPrefill: 1, wantedDecode: 1 }],
  }),
  explain: () => ({ kind: "explain-report", models: [] }),
});

describe("the console's files", () => {
  test("are all of its folder but what is for people who change it, need no key, and hold none", async () => {
    await using file = await KeysFile.with({ tenants: { acme: {} }, keys: [keyFor("acme").line] });
    await using harness = await startHarness(hello, { tenancy: await tenancyOf(file) });
    for (const name of readdirSync(folder).filter((one) => /\.(html|css|js|svg)$/.test(one))) {
      const answer = await fetch(`${harness.url}/console/${name}`);
      expect([name, answer.status]).toEqual([name, 200]);
      expect(answer.headers.get("content-security-policy")).toMatch(/^default-src 'none'.*trusted-types 'none'$/);
      expect(answer.headers.get("content-security-policy")).not.toContain("unsafe");
      const text = await answer.text();
      expect(text).not.toMatch(/mgy-/);
      for (const [, from] of text.matchAll(/from "([^"]+)"/g)) expect(readdirSync(folder)).toContain(from!.slice(2));
    }
    const page = await (await fetch(`${harness.url}/`)).text();
    expect(page).toBe(await (await fetch(`${harness.url}/console/index.html`)).text());
    expect(page).not.toMatch(/<script(?![^>]* src="console\/main\.js")/);
    expect(page).not.toMatch(/(src|href)="(https?:)?\/\//);
  });

  test("are not sent again to a reader that has them", async () => {
    await using harness = await startHarness(hello);
    const first = await fetch(`${harness.url}/console/main.js`);
    const etag = first.headers.get("etag")!;
    await first.text();
    const again = await fetch(`${harness.url}/console/main.js`, { headers: { "if-none-match": `"old", W/${etag}` } });
    expect([again.status, await again.text(), again.headers.get("etag")]).toEqual([304, "", etag]);
    expect((await fetch(`${harness.url}/console/main.js`, { headers: { "if-none-match": '"old"' } })).status).toBe(200);
  });

  test("are the listed ones: no other path reaches a file", async () => {
    await using harness = await startHarness(hello);
    for (const path of ["README.md", "tsconfig.json", "..%2fgateway%2fgateway.ts", "%2e%2e%2fmain.ts", "constructor"])
      expect([path, (await fetch(`${harness.url}/console/${path}`)).status]).toEqual([path, 404]);
  });
});

describe("GET /v1/fleet", () => {
  test("tells ranks, pages by state, and what waits", async () => {
    const operator = operatorOf([rankStatus("p1"), rankStatus("d1")]);
    await using harness = await startHarness(hello, { operator });
    const fleet = FleetResponse.parse(await (await fetch(`${harness.url}/v1/fleet`)).json());
    expect(fleet.ranks.map(({ rank, role }) => [rank, role])).toEqual([
      ["d1-r0", "decode"],
      ["p1-r0", "prefill"],
    ]);
    expect(fleet.ranks[0]).toMatchObject({
      kv_bytes: 4096,
      pending_prompt_tokens: 7,
      pages: { free: 10, attached: 0 },
    });
    expect(fleet.models[0]).toMatchObject({ name: "nano", waiting: 2, running: 3 });
  });

  test("names a thousand ranks at most, and says how many there are", async () => {
    const ranks = Array.from({ length: 1_500 }, (_, at) => rankStatus(`d${at}`));
    await using harness = await startHarness(hello, { operator: operatorOf(ranks) });
    const fleet = FleetResponse.parse(await (await fetch(`${harness.url}/v1/fleet`)).json());
    expect([fleet.ranks.length, fleet.ranks_total]).toEqual([1_000, 1_500]);
  });

  test("is for keys with admin alone", async () => {
    const [plain, admin] = [keyFor("acme"), keyFor("ops", { admin: true })];
    await using file = await KeysFile.with({ tenants: { acme: {}, ops: {} }, keys: [plain.line, admin.line] });
    await using harness = await startHarness(hello, { tenancy: await tenancyOf(file) });
    const status = async (init?: RequestInit) => (await fetch(`${harness.url}/v1/fleet`, init)).status;
    expect([await status(), await status(bearer(plain.key)), await status(bearer(admin.key))]).toEqual([401, 403, 200]);
  });
});

test("GET /v1/requests lists the sender's own requests, and refuses a limit that is none", async () => {
  const key = keyFor("acme");
  await using file = await KeysFile.with({ tenants: { acme: {} }, keys: [key.line] });
  const asked: unknown[] = [];
  const way: Way = {
    ...{ requestId: "req_1" as RequestId, model: "nano" as ModelName, tenant: "acme", trace: null, beganMs: 5_000 },
    ...{ promptTokens: 3, attempts: [], firstTokenMs: 5_100, endedMs: 5_400, outcome: "ok", generatedTokens: 9 },
  };
  const latest = (tenant: string, most: number) => {
    asked.push([tenant, most]);
    return [way];
  };
  await using harness = await startHarness(hello, { tenancy: await tenancyOf(file), latest });
  const ask = (query: string) => fetch(`${harness.url}/v1/requests${query}`, bearer(key.key));
  const { data } = RequestListResponse.parse(await (await ask("?limit=100")).json());
  expect(data).toMatchObject([{ id: "req_1", outcome: "ok", created: 5, total_ms: 400, generated_tokens: 9 }]);
  expect(asked).toEqual([["acme", 100]]);
  for (const limit of ["0", "101", "-1", "many", "1&limit=2"]) {
    const refused = await ask(`?limit=${limit}`);
    expect([limit, refused.status, (await refused.text()).includes('"param":"limit"')]).toEqual([limit, 400, true]);
  }
});
