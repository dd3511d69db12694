import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Bus } from "#protocol/bus/bus.ts";
import { MemoryNetwork } from "#protocol/bus/memory-bus.ts";
import type { MargayError } from "#protocol/errors.ts";
import { GatewayId } from "#protocol/ids.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { type Limits, NO_LIMITS, type Tenant } from "../../control-plane/tenancy/key-file.ts";
import { durationOf, limitHeaders } from "../../control-plane/tenancy/limit-headers.ts";
import { Limiter, type Meter } from "../../control-plane/tenancy/limiter.ts";
import { FakeClock, fakeRandom } from "../support/fake-clock.ts";
import { NatsServer } from "../support/nats-server.ts";

const tenantWith = (limits: Partial<Limits>, name = "acme"): Tenant => ({
  ...{ name, organisation: null, models: null, weight: 1, priority: "normal" },
  limits: { ...NO_LIMITS, ...limits },
});

/** Several control planes that count the same tenants, under virtual time. */
class Replicas {
  readonly clock = new FakeClock();
  readonly network = new MemoryNetwork(this.clock, fakeRandom(1));
  readonly buses: Bus[];
  readonly limiters: Limiter[];

  constructor(count: number) {
    this.buses = Array.from({ length: count }, () => this.network.connect("control-plane"));
    this.limiters = this.buses.map(
      (bus, index) =>
        new Limiter({
          bus,
          clock: this.clock,
          random: fakeRandom(2 + index),
          gatewayId: GatewayId.parse(`gw-${index}`),
        }),
    );
    for (const limiter of this.limiters) limiter.start();
  }

  /** How a request is answered, at the replica of its turn. */
  async ask(tenant: Tenant, tokens: number, turn = 0): Promise<Meter | MargayError> {
    const asked = this.limiters[turn % this.limiters.length]!.begin(tenant, tokens, () => {});
    let over = false;
    const answered = asked
      .catch((error: MargayError) => error)
      .finally(() => {
        over = true;
      });
    await this.clock.settle();
    // Whoever lost against another control plane tries again a little later.
    while (!over) await this.clock.advance(1);
    return answered;
  }
}

const admitted = (answers: readonly (Meter | MargayError)[]) => answers.filter((one) => "charge" in one) as Meter[];

describe("limits of a tenant, counted by two control planes", () => {
  test("requests per minute: as many as the limit, at once or in a row, whichever control plane they come to", async () => {
    for (const limit of [1, 3, 60, 1_000]) {
      const replicas = new Replicas(2);
      const tenant = tenantWith({ requestsPerMinute: limit });
      const answers = await Promise.all(Array.from({ length: limit * 2 }, (_, turn) => replicas.ask(tenant, 10, turn)));
      expect(admitted(answers).length).toBeLessThanOrEqual(limit);
      // What one of them holds for its next requests is the other's again within two seconds.
      await replicas.clock.advance(2_500);
      const ranIn = Math.floor((2.5 * limit) / 60);
      const later: (Meter | MargayError)[] = [];
      for (let turn = 0; turn < limit; turn++) later.push(await replicas.ask(tenant, 10, turn));
      const all = admitted([...answers, ...later]).length;
      expect([limit, all >= limit * 0.98 && all <= limit + ranIn]).toEqual([limit, true]);
    }
  });

  test("tell when to come back, and then let the request in", async () => {
    const replicas = new Replicas(2);
    const tenant = tenantWith({ requestsPerMinute: 6 });
    for (let turn = 0; turn < 6; turn++) expect(await replicas.ask(tenant, 1, turn)).toHaveProperty("charge");
    const refused = (await replicas.ask(tenant, 1, 1)) as MargayError;
    expect(refused).toMatchObject({ code: "rate_limit_exceeded", status: 429 });
    expect(refused.retryAfterMs).toBeGreaterThan(9_000);
    expect(refused.retryAfterMs).toBeLessThanOrEqual(10_000);
    await replicas.clock.advance(refused.retryAfterMs! - 100);
    expect(await replicas.ask(tenant, 1, 0)).toHaveProperty("code");
    await replicas.clock.advance(200);
    expect(await replicas.ask(tenant, 1, 0)).toHaveProperty("charge");
  });

  test("prompt tokens never exceed the limit and what ran in, over an hour of random requests", async () => {
    const replicas = new Replicas(3);
    const random = fakeRandom(9);
    const limit = 6_000;
    const tenant = tenantWith({ inputTokensPerMinute: limit });
    let admittedTokens = 0;
    for (let second = 0; second < 3_600; second++) {
      const tokens = 1 + Math.floor(random.uniform() * 900);
      const answer = await replicas.ask(tenant, tokens, Math.floor(random.uniform() * 3));
      if ("charge" in answer) {
        admittedTokens += tokens;
        answer.end();
      }
      await replicas.clock.advance(1_000);
    }
    expect(admittedTokens).toBeLessThanOrEqual(limit * 61);
    expect(admittedTokens).toBeGreaterThan(limit * 60 * 0.8);
  });

  test("generated tokens are a debt that the next minutes pay: over a longer time the limit holds", async () => {
    const replicas = new Replicas(2);
    const tenant = tenantWith({ outputTokensPerMinute: 600 });
    let generated = 0;
    for (let second = 0; second < 3_600; second++) {
      const answer = await replicas.ask(tenant, 1, second);
      if ("charge" in answer) {
        answer.charge(1_500);
        generated += 1_500;
        answer.end();
      }
      await replicas.clock.advance(1_000);
    }
    expect(generated).toBeGreaterThan(600 * 60 * 0.8);
    expect(generated).toBeLessThanOrEqual(600 * 61 + 2 * 1_500);
  });

  test("a prompt above a whole minute's worth waits for a full bucket, instead of for ever", async () => {
    const replicas = new Replicas(1);
    const tenant = tenantWith({ tokensPerMinute: 100 });
    const first = await replicas.ask(tenant, 250);
    expect(first).toHaveProperty("charge");
    (first as Meter).end();
    const refused = (await replicas.ask(tenant, 1)) as MargayError;
    expect(refused.retryAfterMs).toBeGreaterThan(89_000);
    await replicas.clock.advance(refused.retryAfterMs! + 10);
    expect(await replicas.ask(tenant, 1)).toHaveProperty("charge");
  });

  test("requests at once: never more than allowed, and one that ends makes room everywhere within two seconds", async () => {
    const replicas = new Replicas(2);
    const tenant = tenantWith({ concurrency: 5 });
    const answers = await Promise.all(Array.from({ length: 20 }, (_, turn) => replicas.ask(tenant, 1, turn)));
    const running = admitted(answers);
    expect(running).toHaveLength(5);
    await replicas.clock.advance(60_000);
    expect(await replicas.ask(tenant, 1, 0)).toMatchObject({ code: "rate_limit_exceeded", retryAfterMs: 1_000 });
    for (const meter of running) {
      meter.end();
      meter.end();
    }
    await replicas.clock.advance(2_000);
    const again = await Promise.all(Array.from({ length: 20 }, () => replicas.ask(tenant, 1, 1)));
    expect(admitted(again)).toHaveLength(5);
  });

  test("places of a control plane that died are free after fifteen seconds", async () => {
    const replicas = new Replicas(2);
    const tenant = tenantWith({ concurrency: 2 });
    for (let i = 0; i < 2; i++) await replicas.ask(tenant, 1, 0);
    replicas.network.disconnect(replicas.buses[0]!);
    await replicas.clock.advance(10_000);
    expect(await replicas.ask(tenant, 1, 1)).toHaveProperty("code");
    await replicas.clock.advance(6_000);
    expect(await replicas.ask(tenant, 1, 1)).toHaveProperty("charge");
  });

  test("one tenant's limits are nobody else's, and a tenant without limits asks nobody", async () => {
    const replicas = new Replicas(1);
    expect(await replicas.ask(tenantWith({ requestsPerMinute: 1 }, "a"), 1)).toHaveProperty("charge");
    expect(await replicas.ask(tenantWith({ requestsPerMinute: 1 }, "b"), 1)).toHaveProperty("charge");
    expect(await replicas.ask(tenantWith({ requestsPerMinute: 1 }, "a"), 1)).toHaveProperty("code");
    replicas.network.stop();
    expect(await replicas.ask(tenantWith({}, "c"), 1)).toHaveProperty("charge");
  });

  test("while the bus is away a request waits to be counted, for ten seconds", async () => {
    const replicas = new Replicas(1);
    const tenant = tenantWith({ requestsPerMinute: 60 });
    replicas.network.stop();
    const begun = replicas.limiters[0]!.begin(tenant, 1, () => {}).catch((error: MargayError) => error.code);
    await replicas.clock.advance(5_000);
    replicas.network.start();
    await replicas.clock.advance(1_000);
    expect(await begun).toHaveProperty("charge");
    replicas.network.stop();
    const lost = replicas.limiters[0]!.begin(tenantWith({ requestsPerMinute: 1 }, "b"), 1, () => {});
    const code = lost.catch((error: MargayError) => error.code);
    await replicas.clock.advance(11_000);
    expect(await code).toBe("bus_unavailable");
  });
});

test("limits are told as OpenAI's clients read them", () => {
  const limits = { ...NO_LIMITS, requestsPerMinute: 60, tokensPerMinute: 6_000, inputTokensPerMinute: 5_000 };
  expect(limitHeaders(limits, { requests: 59, total: 3_000, input: 5_000, output: 0 })).toEqual({
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-limit-tokens": "6000",
    "x-ratelimit-remaining-tokens": "3000",
    "x-ratelimit-reset-tokens": "30s",
    "x-ratelimit-limit-input-tokens": "5000",
    "x-ratelimit-remaining-input-tokens": "5000",
    "x-ratelimit-reset-input-tokens": "0ms",
  });
  expect([12.3, 999.5, 1_000, 1_510, 59_990, 360_000, 90_500].map(durationOf)).toEqual([
    ...["13ms", "1000ms", "1s", "1.6s", "1m0s", "6m0s", "1m30.5s"],
  ]);
});

describe("on a real NATS server", () => {
  let server: NatsServer;
  beforeAll(async () => {
    server = await NatsServer.start();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  test("two control planes under load at the same moment never let in more than the limit", async () => {
    const buses = await Promise.all([server.connect("control-plane"), server.connect("control-plane")]);
    const limiters = buses.map(
      (bus, index) =>
        new Limiter({ bus, clock: systemClock, random: systemRandom, gatewayId: GatewayId.parse(`gw-${index}`) }),
    );
    const tenant = tenantWith({ inputTokensPerMinute: 1_000, concurrency: 40 });
    const began = systemClock.monotonic();
    const answers = await Promise.all(
      Array.from({ length: 200 }, (_, turn) =>
        limiters[turn % 2]!.begin(tenant, 20, () => {}).then(
          () => "admitted",
          (error: MargayError) => error.code,
        ),
      ),
    );
    const ranIn = ((systemClock.monotonic() - began) / 60_000) * 1_000;
    const count = answers.filter((answer) => answer === "admitted").length;
    expect(count).toBeLessThanOrEqual(Math.min(40, Math.floor((1_000 + ranIn) / 20)));
    expect(count).toBeGreaterThan(30);
    expect(new Set(answers)).toEqual(new Set(["admitted", "rate_limit_exceeded"]));
    for (const limiter of limiters) await limiter.stop();
    for (const bus of buses) await bus.close(1_000);
  });
});
