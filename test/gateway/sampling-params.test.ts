import { describe, expect, test } from "vitest";
import { Generation } from "#protocol/request.ts";
import { choiceSeed, planGeneration } from "../../control-plane/gateway/sampling-params.ts";
import { SamplingFields } from "../../control-plane/gateway/sampling-schema.ts";
import { nanoModel } from "../support/gateway-harness.ts";

const nano = await nanoModel();

function plan(fields: object, length = 10, model = nano) {
  const parsed = SamplingFields.parse({ model: "nano", ...fields });
  const prompt = { tokens: new Int32Array(length).fill(7), param: "prompt" };
  return Generation.parse(planGeneration(model, parsed, prompt, { topLogprobs: -1, seed: 5, constraint: null }));
}

describe("defaults", () => {
  test("come from the checkpoint's generation_config.json", () => {
    const { sampling, maxNewTokens } = plan({});
    expect(nano.defaults).toMatchObject({ temperature: 0.3, topP: 0.95, maxNewTokens: 512 });
    expect(sampling).toMatchObject({ temperature: 0.3, topP: 0.95, topK: 0, minP: 0, repetitionPenalty: 1, seed: 5 });
    expect(maxNewTokens).toBe(512);
  });

  test("are neutral where the checkpoint says nothing", () => {
    const none = { temperature: null, topP: null, topK: null, minP: null, maxNewTokens: null, repetitionPenalty: null };
    const { sampling, maxNewTokens } = plan({}, 10, { ...nano, defaults: none });
    expect(sampling).toMatchObject({ temperature: 1, topP: 1, topK: 0, minP: 0, repetitionPenalty: 1 });
    expect(maxNewTokens).toBe(nano.contextLength - 10);
  });

  test("yield to the request, 0 and null told apart", () => {
    expect(plan({ temperature: 0, top_p: null, top_k: -1 }).sampling).toMatchObject({
      temperature: 0,
      topP: 0.95,
      topK: 0,
    });
    expect(plan({ top_p: 0 }).sampling.topP).toBeLessThan(1e-5);
    const many = { frequency_penalty: 1, presence_penalty: -1, repetition_penalty: 1.5, min_p: 0.1, top_k: 4 };
    expect(plan(many).sampling).toMatchObject({
      ...{ frequencyPenalty: 1, presencePenalty: -1, repetitionPenalty: 1.5, minP: 0.1, topK: 4 },
    });
  });
});

describe("the room for output", () => {
  test("a max_tokens that exceeds only what the prompt leaves is cut down to that", () => {
    expect(plan({ max_tokens: 4096 }, 4000).maxNewTokens).toBe(96);
    expect(plan({ max_tokens: 50 }, 4000).maxNewTokens).toBe(50);
    expect(plan({}, 4000).maxNewTokens).toBe(96);
    expect(plan({}, 4095).maxNewTokens).toBe(1);
  });

  test("a prompt that leaves none is context_length_exceeded, with the numbers", () => {
    expect(() => plan({}, 4096)).toThrow(/prompt has 4096 tokens; nano takes at most 4095/);
  });

  test("max_completion_tokens wins over max_tokens", () => {
    expect(plan({ max_tokens: 50, max_completion_tokens: 20 }).maxNewTokens).toBe(20);
  });

  test("ignore_eos obeys no end before the last token", () => {
    expect(plan({ ignore_eos: true, max_tokens: 33 }).sampling.minNewTokens).toBe(33);
    expect(plan({ ignore_eos: true, max_tokens: 500 }, 4000).sampling.minNewTokens).toBe(96);
    expect(plan({ min_tokens: 5 }).sampling.minNewTokens).toBe(5);
  });
});

describe("token lists", () => {
  test("logit_bias and stop_token_ids become flat arrays", () => {
    const { sampling } = plan({ logit_bias: { "7": -100, "2047": 1.5 }, stop_token_ids: [3, 9] });
    expect([...sampling.logitBiasIds]).toEqual([7, 2047]);
    expect([...sampling.logitBiasValues]).toEqual([-100, 1.5]);
    expect([...sampling.stopTokens]).toEqual([3, 9]);
  });
});

test("seeds of choices differ and stay in range", () => {
  const seeds = Array.from({ length: 128 }, (_, index) => choiceSeed(Number.MAX_SAFE_INTEGER, index));
  expect(new Set(seeds).size).toBe(128);
  for (const seed of seeds) expect(Number.isSafeInteger(seed) && seed >= 0).toBe(true);
});
