import { mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Browser, Page } from "puppeteer-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { chromium, seriousFaults, startBrowser } from "../support/browser.ts";
import { stream } from "../support/client.ts";
import { KeysFile, keyFor } from "../support/keys-file.ts";
import { type System, startSystem } from "../support/system.ts";

/** The console in a real browser, over real processes. WRITE_DOCS=1 keeps what it looks like in docs/console. */

const WAIT_MS = 60_000;
const DOCS = fileURLToPath(new URL("../../docs/console/", import.meta.url));
const KEPT = ["chat", "fleet", "timeline", "usage"];
const found = chromium();

if ("lack" in found) test.skip(`the console in a browser (not run: ${found.lack})`, () => {});
else describe("the console in Chromium", () => describeConsole(found.path));

function describeConsole(program: string): void {
  const admin = keyFor("ops", { admin: true });
  const faults: string[] = [];
  let keys: KeysFile;
  let system: System;
  let browser: Browser;
  let page: Page;

  beforeAll(async () => {
    const prices = { currency: "EUR", models: { nano: { input: "0.5", output: "2" } } };
    keys = await KeysFile.with({ tenants: { ops: {} }, prices, keys: [admin.line] });
    system = await startSystem({
      MARGAY_KEYS_FILE: keys.path,
      // Slow enough that a stream is met while it runs.
      MARGAY_BACKEND: "ref",
      MARGAY_DECODE: "2..2",
      MARGAY_STEP_TOKENS: "32",
    });
    await Promise.all([system.ready("prefill", 1), system.ready("decode", 2)]);
    browser = await startBrowser(program);
    page = await browser.newPage();
    page.setDefaultTimeout(WAIT_MS);
    await page.setViewport({ width: 1280, height: 820 });
    page.on("pageerror", (error) => faults.push(String(error)));
    page.on("console", (message) => {
      // A refused question is told by the page itself.
      if (message.type() === "error" && !/status of 4\d\d/.test(message.text())) faults.push(message.text());
    });
  }, 300_000);

  afterAll(async () => {
    await browser?.close();
    expect(await system?.stop()).toBe(0);
    await keys?.[Symbol.asyncDispose]();
  }, 90_000);

  /** Waits until an expression over the page is true. */
  async function until(expression: string): Promise<void> {
    await page.waitForFunction(expression, { timeout: WAIT_MS, polling: 100 }).catch(async () => {
      throw new Error(`waited in vain for ${expression}\n${await textOf("body")}\n${faults.join("\n")}`);
    });
  }
  const textOf = (selector: string) => page.$eval(selector, (node) => node.textContent ?? "");
  const answers = () => page.$$eval(".answer", (all) => all.length);

  async function open(hash: string): Promise<void> {
    await page.evaluate((to) => {
      (globalThis as unknown as { location: { hash: string } }).location.hash = to;
    }, hash);
  }

  /** No serious fault in light and in dark; both kept as pictures where asked. */
  async function inspect(name: string): Promise<void> {
    for (const theme of ["light", "dark"] as const) {
      await page.emulateMediaFeatures([
        { name: "prefers-color-scheme", value: theme },
        { name: "prefers-reduced-motion", value: "reduce" },
      ]);
      expect(await seriousFaults(page), `${name}, ${theme}`).toEqual([]);
      if (process.env.WRITE_DOCS !== "1" || !KEPT.includes(name)) continue;
      mkdirSync(DOCS, { recursive: true });
      await page.screenshot({ path: `${DOCS}${name}-${theme}.png` });
    }
  }

  /** Types a question, sends it by the keyboard, and waits until it is answered. */
  async function question(text: string): Promise<void> {
    const before = await answers();
    await page.focus("#question");
    await page.keyboard.type(text);
    await page.keyboard.press("Enter");
    await until(`document.querySelectorAll(".answer").length === ${before + 1}`);
    await settled();
  }
  const settled = () => until(`!document.querySelector(".ask .strong").hidden`);

  test("shows nothing of the server before it has a key, and asks for one", async () => {
    await page.goto(system.url);
    await until(`document.querySelector("#key-dialog").open`);
    await inspect("key");
    for (const view of ["#/fleet", "#/requests", "#/usage"]) {
      await open(view);
      await until(`document.querySelector(".failure:not([hidden])")?.textContent.includes("key")`);
      expect(await textOf("main")).not.toMatch(/nano|prefill-|decode-/);
    }
    await open("#/chat");
    await page.focus("#key-input");
    await page.keyboard.type(admin.key);
    await page.keyboard.press("Enter");
    await until(`document.querySelector("#model option")?.value === "nano"`);
    expect(await page.evaluate("JSON.stringify(localStorage)")).not.toContain(admin.key);
    expect(await page.evaluate("document.documentElement.outerHTML")).not.toContain(admin.key);
  }, 120_000);

  test("shows a thought and the answer behind it, a tool's call, and goes on with its result", async () => {
    await page.$eval("#temperature", (input) => ((input as unknown as { value: string }).value = "0"));
    await question("What is 47 + 38?");
    expect(await textOf(".answer:last-of-type .thinking .prose")).toMatch(/\d/);
    expect(await textOf(".answer:last-of-type > .prose")).toMatch(/\d/);
    expect(await textOf(".answer:last-of-type .foot")).toMatch(/\d+ tokens · .*prefill-.* → decode-.* · timeline$/);
    await page.click("#use-tools");
    await question("How is the weather in Rome today?");
    expect(await textOf(".call-name")).toBe("get_weather");
    expect(JSON.parse(await textOf(".call pre"))).toEqual({ city: "Rome" });
    await inspect("chat");
    await page.type(".results input", '{"sky": "clear", "degrees": 24}');
    const before = await answers();
    await page.keyboard.press("Enter");
    await until(`document.querySelectorAll(".answer").length === ${before + 1}`);
    await settled();
    expect(await page.$$eval(".failure", (all) => all.map((node) => node.textContent))).toEqual([]);
  }, 180_000);

  test("stops a stream when Escape is pressed, and keeps what came", async () => {
    await page.click("#use-tools");
    await page.click("#thinking");
    // However fast the model is, its answer is not over when the key is pressed.
    await page.evaluate(`{
      const plain = window.fetch;
      window.fetch = (path, init) =>
        plain(path, init?.body ? { ...init, body: JSON.stringify({ ...JSON.parse(init.body), min_tokens: 1000 }) } : init);
    }`);
    const before = await answers();
    await page.focus("#question");
    await page.keyboard.type("Tell me a story about a fox.");
    await page.keyboard.press("Enter");
    await until(
      `document.querySelectorAll(".answer").length === ${before + 1} && [...document.querySelectorAll(".answer > .prose")].at(-1).textContent !== ""`,
    );
    await page.keyboard.press("Escape");
    await settled();
    expect(await page.$$eval(".answer .foot", (all) => all.at(-1)!.textContent)).toMatch(/^stopped · /);
  }, 120_000);

  test("says in the server's own words what is wrong with a request", async () => {
    await page.click("#use-tools");
    await page.$eval("#tools", (area) => ((area as unknown as { value: string }).value = '[{"type": "magic"}]'));
    await question("Hi");
    expect(await page.$$eval(".failure", (all) => all.at(-1)!.textContent)).toMatch(/tools.*status 400/s);
    await page.click("#use-tools");
  }, 120_000);

  test("draws the fleet while requests run: ranks, pages by state, rates", async () => {
    const abort = new AbortController();
    const load = Array.from({ length: 8 }, (_, at) =>
      ask(`Question ${at}: ${"what is a margay? ".repeat(12 + at)}`, abort.signal),
    );
    try {
      await open("#/fleet");
      await until(`document.querySelectorAll(".rank").length === 3`);
      await until(`document.querySelector(".page.attached") && document.querySelector(".page.free")`);
      await until(`parseFloat(document.querySelector(".tile.decode strong").textContent) > 0`);
      expect(await page.$$eval(".rank h3", (all) => all.map((node) => node.textContent!.split("-")[0]))).toEqual([
        "prefill",
        "decode",
        "decode",
      ]);
      // Some seconds of history in the picture.
      await until(`document.querySelector(".tile.decode .stroke").getAttribute("d").split("L").length > 6`);
      await inspect("fleet");
    } finally {
      abort.abort();
      await Promise.all(load);
    }
  }, 180_000);

  test("draws the timeline of a request whose decode process was killed: both placements, and why", async () => {
    const pids = new Map<string, number>((await system.ready("decode", 2)).map(({ workerId, pid }) => [workerId, pid]));
    let killed = false;
    const answer = await stream(
      system.url,
      "/v1/completions",
      {
        model: "nano",
        prompt: "the cat sat on the mat. ".repeat(30),
        temperature: 0,
        max_tokens: 200,
        min_tokens: 200,
      },
      {
        headers: { authorization: `Bearer ${admin.key}` },
        onChunk: ({ chunks, headers }) => {
          if (killed || chunks < 3) return;
          killed = true;
          process.kill(pids.get(headers.get("x-margay-decode")!)!, "SIGKILL");
        },
      },
    );
    expect([killed, answer.error]).toEqual([true, null]);
    await open("#/requests");
    const link = `a[href="#/requests/${answer.headers.get("x-request-id")}"]`;
    await page.waitForSelector(link);
    await page.focus(link);
    await page.keyboard.press("Enter");
    await until(`document.querySelectorAll(".attempt").length >= 2`);
    const outcomes = await page.$$eval(".attempt .outcome", (all) => all.map((node) => node.textContent));
    expect([outcomes[0], outcomes.at(-1)]).toEqual(["worker_lost", "ok"]);
    for (const phase of ["queue", "reserve", "prefill", "transfer", "decode"])
      expect(await page.$$eval(`.attempt:last-of-type .phase.${phase}`, (all) => all.length)).toBe(1);
    expect(await textOf(".attempt:last-of-type")).toMatch(
      /P: prefill-.*\n?.*D: decode-.*after \d+ that the client had/s,
    );
    await inspect("timeline");
    await open("#/requests");
    await page.waitForSelector("tbody tr");
    await inspect("requests");
  }, 180_000);

  test("shows tenants what they used and spent", async () => {
    await open("#/usage");
    await until(`document.querySelector("tbody td")?.textContent === "ops"`);
    expect(await textOf("tbody tr")).toMatch(/nano.*EUR/);
    await inspect("usage");
  }, 120_000);

  test("is usable by keyboard alone, and nothing failed on the way", async () => {
    await page.reload();
    await page.waitForSelector("main h1");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    expect(await page.evaluate("document.activeElement.id")).toBe("view");
    expect(faults).toEqual([]);
  }, 60_000);

  /** One request, however it ends. */
  async function ask(prompt: string, signal: AbortSignal): Promise<void> {
    const body = { model: "nano", prompt, max_tokens: 1500, min_tokens: 1500 };
    const headers = { "content-type": "application/json", authorization: `Bearer ${admin.key}` };
    await fetch(`${system.url}/v1/completions`, { method: "POST", headers, body: JSON.stringify(body), signal })
      .then((response) => response.text())
      .catch(() => {});
  }
}
