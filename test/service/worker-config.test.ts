import { expect, test } from "vitest";
import { readWorkerConfig, workerNames } from "#service/worker-config.ts";
import { fakeRandom } from "../support/fake-clock.ts";

const nats = { MARGAY_NATS_URL: "nats://127.0.0.1:4222" };

test("a model without a name is served under its folder's", () => {
  expect(readWorkerConfig({ ...nats, MARGAY_MODEL: "/models/nano/" }).modelName).toBe("nano");
  const named = readWorkerConfig({ ...nats, MARGAY_MODEL: "/models/nano", MARGAY_MODEL_NAME: "small one" });
  expect(named.modelName).toBe("small one");
  expect(named.engine.modelFolder).toBe("/models/nano");
});

test("packed weights lie in the state folder, or nowhere when switched off", () => {
  expect(readWorkerConfig({ ...nats, MARGAY_STATE_DIR: "/state" }).engine.packedFolder).toBe("/state/packed");
  expect(readWorkerConfig({ ...nats, MARGAY_PACKED_WEIGHTS: "off" }).engine.packedFolder).toBeNull();
});

test("the advertised address is taken apart; without one there is none", () => {
  expect(readWorkerConfig({ ...nats, MARGAY_KV_ADVERTISE: "10.0.0.7:9000" }).kvAdvertise).toEqual({
    host: "10.0.0.7",
    port: 9000,
  });
  expect(readWorkerConfig(nats).kvAdvertise).toBeNull();
});

test("no server, an unknown setting and a bad value are each said by name", () => {
  expect(() => readWorkerConfig({})).toThrow("MARGAY_NATS_URL");
  expect(() => readWorkerConfig({ ...nats, MARGAY_SLOT: "4" })).toThrow("MARGAY_SLOT");
  expect(() => readWorkerConfig({ ...nats, MARGAY_SLOTS: "0" })).toThrow("MARGAY_SLOTS=0");
});

test("a worker nobody named makes up a name that two of them do not share", () => {
  const config = readWorkerConfig(nats);
  const [a, b] = [workerNames(config, "prefill", fakeRandom(1)), workerNames(config, "prefill", fakeRandom(2))];
  expect(a.workerId).not.toBe(b.workerId);
  expect(a.rankId).toBe(`${a.workerId}-r0`);
  expect(workerNames(readWorkerConfig({ ...nats, MARGAY_WORKER_ID: "w7" }), "decode", fakeRandom(1))).toEqual({
    workerId: "w7",
    rankId: "w7-r0",
  });
});

test("expert rows as fp8 are refused where results have to be deterministic", () => {
  const ranks = { ...nats, MARGAY_RANKS: "2", MARGAY_EXCHANGE_PAYLOAD: "fp8" };
  expect(readWorkerConfig(ranks).engine.group?.exchangePayload).toBe("fp8");
  expect(() => readWorkerConfig({ ...ranks, MARGAY_DETERMINISTIC: "1" })).toThrow("MARGAY_EXCHANGE_PAYLOAD=fp8");
});
