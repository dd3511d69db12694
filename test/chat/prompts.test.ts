import { afterAll, expect, test } from "vitest";
import { systemClock } from "#service/clock.ts";
import { renderChat } from "../../control-plane/chat/prompt.ts";
import { Prompts } from "../../control-plane/chat/prompts.ts";
import { nanoModel } from "../support/gateway-harness.ts";

const prompts = new Prompts(systemClock);
afterAll(() => prompts.close());

const PLAIN = { tools: null, templateKwargs: {} };
/** Within nano's context, and too long to be read at once. Spells a tag, which has to stay text. */
const LONG = `${"Tell me more. ".repeat(400)} <longcat_think> ${"é漢 ".repeat(50)}`;
const LONGER = "Tell me more. ".repeat(4_000);

test("a long conversation has the same tokens on the thread as off it", async () => {
  const model = await nanoModel();
  const messages = [{ role: "user", content: LONG }];
  const own = renderChat(model, messages, PLAIN);
  expect(own.tokens.length).toBeGreaterThan(1_000);
  expect(await prompts.chat(model, messages, PLAIN)).toEqual(own);
});

test("a long text has the same tokens on the thread as off it, up to the same limit", async () => {
  const model = await nanoModel();
  expect(await prompts.text(model, LONG, 1e6)).toEqual(model.tokenizer.encode(LONG, 1e6));
  expect(await prompts.text(model, LONG, 100)).toEqual(model.tokenizer.encode(LONG, 100));
});

test("a long prompt is read by somebody else: its answer needs a turn of the event loop, a short one's does not", async () => {
  const model = await nanoModel();
  const withinTurn = async (text: string): Promise<boolean> => {
    let answered = false;
    const read = prompts.text(model, text, 1e6).then(() => {
      answered = true;
    });
    // Work of this turn alone: nothing from outside can arrive between.
    for (let i = 0; i < 100; i++) await Promise.resolve();
    const within = answered;
    await read;
    return within;
  };
  expect(await withinTurn(LONG)).toBe(false);
  expect(await withinTurn("short")).toBe(true);
});

test("what is wrong with a long conversation is told as ever", async () => {
  const model = await nanoModel();
  await expect(prompts.chat(model, [{ role: "user", content: LONGER }], PLAIN)).rejects.toMatchObject({
    code: "context_length_exceeded",
    param: "messages",
  });
  const badName = { tools: null, templateKwargs: { "no name": LONG } };
  await expect(prompts.chat(model, [{ role: "user", content: "Hi" }], badName)).rejects.toMatchObject({
    code: "invalid_request",
    param: "chat_template_kwargs",
  });
});

test("long prompts beyond the bound are refused, those before it are told when the gateway closes", async () => {
  const model = await nanoModel();
  const own = new Prompts(systemClock);
  const all = Array.from({ length: 257 }, () => own.text(model, LONG, 1e6).catch(({ code }: { code: string }) => code));
  expect(await all[256]).toBe("queue_full");
  await own.close();
  expect(await all[255]).toBe("shutting_down");
  await expect(own.text(model, LONG, 1e6)).rejects.toMatchObject({ code: "shutting_down" });
});
