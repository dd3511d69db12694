import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { stream } from "../support/client.ts";
import { chatBody, type Dialogue, dialogues, expectedAnswer, nanoModel } from "../support/dialogues.ts";
import { expectNothingHeld } from "../support/pools.ts";
import { type System, startSystem } from "../support/system.ts";

/** Workers of several ranks answer as workers of one do: recorded dialogues over prefill and decode groups of all sizes. */

const { tokenizer } = await nanoModel();

/** Short enough for many processes on few cores, and of several turns among them. */
const chosen = dialogues
  .map((dialogue) => ({ dialogue, tokens: tokenizer.encode(dialogue.greedy).length }))
  .filter(({ tokens }) => tokens >= 12 && tokens <= 60)
  .slice(0, 6);

const ask = ({ dialogue, tokens }: { readonly dialogue: Dialogue; readonly tokens: number }, system: System) =>
  stream(system.url, "/v1/chat/completions", { ...chatBody(dialogue), temperature: 0, max_tokens: tokens });

describe.each([
  { prefill: 2, decode: 4 },
  { prefill: 3, decode: 1 },
  { prefill: 4, decode: 3 },
])("$prefill prefill ranks and $decode decode ranks", ({ prefill, decode }) => {
  let system: System;

  beforeAll(async () => {
    system = await startSystem({
      MARGAY_BACKEND: "ref",
      MARGAY_PREFILL_EP: String(prefill),
      MARGAY_DECODE_EP: String(decode),
      MARGAY_EP_BALANCE_SECONDS: "1",
      // Many processes on few cores: a rank is late because it waits for its turn.
      MARGAY_EXCHANGE_DEADLINE_MS: "10000",
    });
    await system.ready("prefill", prefill);
    await system.ready("decode", decode);
  }, 150_000);
  afterAll(async () => {
    expect(await system?.stop()).toBe(0);
  }, 90_000);

  test("give the recorded answers", async () => {
    expect(chosen.length).toBe(6);
    for (let round = 0; round < 2; round++) {
      const answers = await Promise.all(chosen.map((one) => ask(one, system)));
      for (const [i, { dialogue }] of chosen.entries()) {
        const { content, reasoning } = expectedAnswer(dialogue);
        expect(answers[i]!.error).toBeNull();
        expect({ content: answers[i]!.content, reasoning: answers[i]!.reasoning }).toEqual({ content, reasoning });
        expect(answers[i]!.comments.at(-1)).not.toMatch(/x-margay-attempts: [2-9]/);
      }
    }
    await expectNothingHeld(system);
  }, 150_000);
});
