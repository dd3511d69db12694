import { expect, test } from "vitest";
import { PrefillRate } from "../../prefill-node/prefill-rate.ts";

test("the rate is unknown before the first step, then what was seen", () => {
  const rate = new PrefillRate(100);
  expect(rate.tokensPerSecond).toBe(0);
  rate.observe(50, 100);
  expect(rate.tokensPerSecond).toBe(500);
});

test("steps of few rows, which cost almost as much as full ones, hardly lower the rate", () => {
  const rate = new PrefillRate(256);
  rate.observe(256, 100);
  for (let i = 0; i < 50; i++) rate.observe(2, 90);
  expect(rate.tokensPerSecond).toBeGreaterThan(0.85 * 2560);
});

test("a first step of few rows does not hold the rate down", () => {
  const rate = new PrefillRate(256);
  rate.observe(2, 90);
  for (let i = 0; i < 12; i++) rate.observe(256, 100);
  expect(rate.tokensPerSecond).toBeGreaterThan(0.95 * 2560);
});

test("full steps that became slow lower it within a few", () => {
  const rate = new PrefillRate(256);
  rate.observe(256, 100);
  for (let i = 0; i < 12; i++) rate.observe(256, 400);
  expect(rate.tokensPerSecond).toBeLessThan(1.1 * 640);
});

test("a step without prompt rows or without measurable time says nothing", () => {
  const rate = new PrefillRate(256);
  rate.observe(0, 10);
  rate.observe(10, 0);
  expect(rate.tokensPerSecond).toBe(0);
});
