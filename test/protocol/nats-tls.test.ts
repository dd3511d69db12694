import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Bus, silentObserver } from "#protocol/bus/bus.ts";
import { connectNats, type NatsTls } from "#protocol/bus/nats-bus.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { Authority, hasOpenssl } from "../support/certificates.ts";
import { NatsServer } from "../support/nats-server.ts";

/** A refusal is told when this time is over: it is tried again until then. */
const PATIENCE_MS = 1_500;

describe.skipIf(!hasOpenssl)("NATS over TLS", () => {
  let authority: Authority;
  let stranger: Authority;
  let secured: NatsServer;
  let plain: NatsServer;

  beforeAll(async () => {
    authority = new Authority();
    stranger = new Authority("a stranger");
    const { certFile, keyFile } = authority.issue("nats");
    const files = `cert_file: "${certFile}", key_file: "${keyFile}", ca_file: "${authority.caFile}"`;
    secured = await NatsServer.start(`tls: { ${files}, verify: true }\n`);
    plain = await NatsServer.start();
  }, 60_000);

  afterAll(async () => {
    await secured[Symbol.asyncDispose]();
    await plain[Symbol.asyncDispose]();
    authority[Symbol.dispose]();
    stranger[Symbol.dispose]();
  });

  const dial = (server: NatsServer, tls: NatsTls | null, patienceMs: number, url = server.url): Promise<Bus> =>
    connectNats({
      ...{ url, tls, user: "operator", password: server.credentials.operator, role: "operator", name: "test" },
      ...{ connectTimeoutMs: patienceMs, timers: systemClock, random: systemRandom, observer: silentObserver },
    });

  test("a process with the authority and a certificate of it is let in", async () => {
    const bus = await dial(secured, { caFile: authority.caFile, certificate: authority.issue("client") }, 30_000);
    expect(bus.state).toBe("connected");
    await bus.close(1_000);
  });

  test("without a certificate, with a stranger's or an expired one nobody is", async () => {
    const { caFile } = authority;
    for (const certificate of [null, stranger.issue("other"), authority.issue("late", -1)]) {
      await expect(dial(secured, { caFile, certificate }, PATIENCE_MS)).rejects.toMatchObject({
        code: "bus_unavailable",
      });
    }
  });

  test("a server of another authority is not trusted, and one without TLS gets no password", async () => {
    const certificate = authority.issue("careful");
    for (const [server, tls, url] of [
      [secured, { caFile: stranger.caFile, certificate }, secured.url],
      [plain, { caFile: authority.caFile, certificate: null }, plain.url],
      [plain, null, plain.url.replace("nats:", "tls:")],
    ] as const) {
      await expect(dial(server, tls, PATIENCE_MS, url)).rejects.toMatchObject({ code: "bus_unavailable" });
    }
    const bus = await dial(plain, null, 30_000);
    await bus.close(1_000);
  });
});
