import { afterAll, beforeAll, expect, test } from "vitest";
import { z } from "zod";
import type { Bus, BusObserver } from "#protocol/bus/bus.ts";
import { connectNats } from "#protocol/bus/nats-bus.ts";
import type { MargayError } from "#protocol/errors.ts";
import type { GatewayId, RankId } from "#protocol/ids.ts";
import { BUS_ROLES, type BusRole } from "#protocol/permissions.ts";
import { inboxPrefix, subjectKind, subjects } from "#protocol/subjects.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { NatsServer } from "../support/nats-server.ts";

const rank = "w1-r0" as RankId;
const gatewayId = "g1" as GatewayId;
const Note = z.strictObject({ text: z.string() });

let server: NatsServer;
const denied: Record<BusRole, string[]> = { "control-plane": [], prefill: [], decode: [], operator: [] };
const buses = {} as Record<BusRole, Bus>;

beforeAll(async () => {
  server = await NatsServer.start();
  for (const role of BUS_ROLES) {
    const observer: BusObserver = {
      onState() {},
      onRejected() {},
      onDropped() {},
      onHandlerError() {},
      onDenied: (operation, subject) => void denied[role].push(`${operation} ${subject}`),
    };
    buses[role] = await server.connect(role, observer);
  }
});

afterAll(async () => {
  for (const bus of Object.values(buses)) await bus.close(1000);
  await server[Symbol.asyncDispose]();
});

async function until(check: () => boolean): Promise<void> {
  while (!check()) await systemClock.sleep(2);
}

/** The server answers commands in order, so after a flush a denial has been told. */
async function deniedTo(role: BusRole, act: (bus: Bus) => void): Promise<readonly string[]> {
  const before = denied[role].length;
  act(buses[role]);
  await buses[role].flush(5000);
  await systemClock.sleep(5);
  return denied[role].slice(before);
}

function connectAs(url: string, user: string | null, password: string | null, connectTimeoutMs = 3000): Promise<Bus> {
  return connectNats({
    url,
    user,
    password,
    tls: null,
    role: user ?? "nobody",
    name: "test",
    connectTimeoutMs,
    timers: systemClock,
    random: systemRandom,
    observer: { onState() {}, onRejected() {}, onDropped() {}, onHandlerError() {}, onDenied() {} },
  });
}

const forbiddenPublications: readonly [BusRole, string][] = [
  ["prefill", subjects.reserve(rank)],
  ["prefill", subjects.prefill(rank)],
  ["prefill", subjects.start(rank)],
  ["prefill", subjects.cancel(rank)],
  ["prefill", subjects.drain(rank)],
  ["prefill", subjects.tokens(gatewayId)],
  ["prefill", subjects.gatewayBeat(gatewayId)],
  ["prefill", subjects.operatorDrain()],
  ["prefill", "$JS.API.STREAM.CREATE.anything"],
  ["prefill", "$KV.margay-epochs.w1-r0"],
  ["prefill", `${inboxPrefix("control-plane")}.stolen`],
  ["decode", subjects.reserve(rank)],
  ["decode", subjects.prefillOutcome(gatewayId)],
  ["decode", subjects.acks(rank)],
  ["decode", "$JS.API.STREAM.DELETE.KV_margay-epochs"],
  ["operator", subjects.cancel(rank)],
  ["operator", subjects.hello()],
  ["operator", subjects.beat(rank)],
  ["control-plane", subjects.beat(rank)],
  ["control-plane", subjects.tokens(gatewayId)],
  ["control-plane", "$JS.API.STREAM.DELETE.KV_margay-epochs"],
  ["control-plane", "anything.else"],
];

test.each(forbiddenPublications)("%s may not publish on %s", async (role, subject) => {
  expect(await deniedTo(role, (bus) => bus.publish(subject, Note, { text: "x" }))).toEqual([`publish ${subject}`]);
});

const forbiddenSubscriptions: readonly [BusRole, string][] = [
  ["prefill", subjects.tokens("*" as GatewayId)],
  ["prefill", subjects.reserve("*" as RankId)],
  ["prefill", subjects.acks("*" as RankId)],
  ["prefill", subjects.beats()],
  ["prefill", `${inboxPrefix("control-plane")}.>`],
  ["prefill", ">"],
  ["decode", subjects.prefill("*" as RankId)],
  ["decode", subjects.tokens("*" as GatewayId)],
  ["decode", subjects.hello()],
  ["operator", subjects.tokens("*" as GatewayId)],
  ["operator", subjects.beats()],
  ["control-plane", subjects.prefill("*" as RankId)],
  ["control-plane", `${inboxPrefix("operator")}.>`],
];

test.each(forbiddenSubscriptions)("%s may not subscribe to %s", async (role, subject) => {
  const told = await deniedTo(role, (bus) => void bus.subscribe(subject, Note, () => {}));
  expect(told).toEqual([`subscribe ${subject}`]);
});

const asked: readonly [BusRole, BusRole, string][] = [
  ["prefill", "control-plane", subjects.hello()],
  ["decode", "control-plane", subjects.hello()],
  ["operator", "control-plane", subjects.operatorStatus()],
  ["operator", "control-plane", subjects.operatorDrain()],
  ["control-plane", "prefill", subjects.prefill(rank)],
  ["control-plane", "decode", subjects.reserve(rank)],
  ["control-plane", "decode", subjects.start(rank)],
  ["control-plane", "decode", subjects.resume(rank)],
  ["control-plane", "prefill", subjects.cancel(rank)],
  ["control-plane", "decode", subjects.cancel(rank)],
  ["control-plane", "prefill", subjects.kvMissed(rank)],
  ["control-plane", "decode", subjects.kvMissed(rank)],
  ["control-plane", "prefill", subjects.drain(rank)],
  ["control-plane", "decode", subjects.drain(rank)],
];

test.each(asked)("%s asks %s on %s and is answered", async (asker, answerer, subject) => {
  const subscription = buses[answerer].respond(subject, Note, Note, ({ text }) => ({ text: `${text}!` }));
  await buses[answerer].flush(5000);
  const answer = await buses[asker].request(subject, Note, { text: "hello" }, Note, 5000);
  subscription.unsubscribe();
  await buses[answerer].flush(5000);
  expect(answer).toEqual({ text: "hello!" });
});

const told: readonly [BusRole, BusRole, string, string][] = [
  ["prefill", "control-plane", subjects.beat(rank), subjects.beats()],
  ["decode", "control-plane", subjects.beat(rank), subjects.beats()],
  ["prefill", "control-plane", subjects.kvEvents(rank), subjects.allKvEvents()],
  ["decode", "control-plane", subjects.kvEvents(rank), subjects.allKvEvents()],
  ["prefill", "control-plane", subjects.prefillOutcome(gatewayId), subjects.prefillOutcome(gatewayId)],
  ["decode", "control-plane", subjects.tokens(gatewayId), subjects.tokens(gatewayId)],
  ["control-plane", "decode", subjects.acks(rank), subjects.acks(rank)],
  ["control-plane", "prefill", subjects.gatewayBeat(gatewayId), subjects.gatewayBeats()],
  ["control-plane", "decode", subjects.gatewayBeat(gatewayId), subjects.gatewayBeats()],
  ["control-plane", "control-plane", subjects.gatewayBeat(gatewayId), subjects.gatewayBeats()],
];

test.each(told)("%s tells %s on %s", async (sender, receiver, subject, pattern) => {
  const seen: string[] = [];
  const subscription = buses[receiver].subscribe(pattern, Note, ({ text }) => void seen.push(text));
  await buses[receiver].flush(5000);
  buses[sender].publish(subject, Note, { text: "hello" });
  await until(() => seen.length > 0);
  subscription.unsubscribe();
  expect(seen).toEqual(["hello"]);
});

test("a request that the server denies fails at once and names the subject", async () => {
  const error = await buses.prefill.request(subjects.reserve(rank), Note, { text: "x" }, Note, 60_000).catch((e) => e);
  expect((error as MargayError).code).toBe("internal");
  expect((error as MargayError).message).toContain(subjects.reserve(rank));
});

test("only the control plane is given epochs", async () => {
  expect(await buses["control-plane"].nextEpoch("w1-r0")).toBeGreaterThan(0);
  await expect(buses.decode.nextEpoch("w1-r0")).rejects.toThrow("NATS gave no epoch");
});

test("a wrong password, no user and an unknown one are refused in one sentence without the password", async () => {
  for (const [user, password] of [
    ["decode", "wrong-password"],
    ["root", "wrong-password"],
    [null, null],
  ] as const) {
    const error: MargayError = await connectAs(server.url, user, password).then(
      () => expect.fail("connected"),
      (thrown) => thrown,
    );
    expect(error.code).toBe("bus_unavailable");
    expect(error.message).toContain(`The NATS server at ${server.url} refuses`);
    expect(error.message).not.toContain("wrong-password");
  }
});

test("where no server answers the error says so and hides a password in the URL", async () => {
  const error: MargayError = await connectAs("nats://me:secret@127.0.0.1:1", "decode", "x", 300).catch((e) => e);
  expect(error.code).toBe("bus_unavailable");
  expect(error.message).toContain("No NATS server answers at nats://127.0.0.1:1");
});

test("a server that is stopped, not gone, is noticed within seconds, and subscriptions survive it", async () => {
  await using frozen = await NatsServer.start();
  const gateway = await frozen.connect("control-plane");
  const worker = await frozen.connect("decode");
  worker.respond(subjects.reserve(rank), Note, Note, (note) => note);
  await worker.flush(5000);
  frozen.freeze();
  const startMs = systemClock.monotonic();
  await until(() => gateway.state === "disconnected" && worker.state === "disconnected");
  // Promised: three unanswered pings, one second apart.
  expect(systemClock.monotonic() - startMs).toBeLessThan(3 * 4_000);
  frozen.thaw();
  await until(() => gateway.state === "connected" && worker.state === "connected");
  await worker.flush(5000);
  expect(await gateway.request(subjects.reserve(rank), Note, { text: "again" }, Note, 5000)).toEqual({ text: "again" });
  await gateway.close(1000);
  await worker.close(1000);
});

test("a message just below the limit passes the server", async () => {
  const Big = z.strictObject({ bytes: z.instanceof(Uint8Array) });
  const fits = { bytes: new Uint8Array(8 * 1024 * 1024 - 100) };
  expect(() => buses["control-plane"].publish(subjects.acks(rank), Big, fits)).not.toThrow();
  await buses["control-plane"].flush(5000);
});

test("the kind of a subject holds no names", () => {
  expect(subjectKind(subjects.reserve(rank))).toBe("rank.reserve");
  expect(subjectKind(subjects.tokens(gatewayId))).toBe("gateway.tokens");
  expect(subjectKind(subjects.beat(rank))).toBe("fleet.beat");
  expect(subjectKind(subjects.hello())).toBe("fleet.hello");
  expect(subjectKind(subjects.operatorStatus())).toBe("operator.status");
  expect(subjectKind("_INBOX.decode.x.1")).toBe("other");
});
