import { readFileSync } from "node:fs";
import { copyFile, rename, writeFile } from "node:fs/promises";
import { request } from "node:https";
import { join } from "node:path";
import { connect, type TLSSocket } from "node:tls";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "#service/clock.ts";
import { silentLogger } from "#service/logger.ts";
import { EdgeTls } from "../../control-plane/gateway/edge-tls.ts";
import { Authority, type Certificate, hasOpenssl } from "../support/certificates.ts";
import { answering } from "../support/fake-flow.ts";
import { startHarness } from "../support/gateway-harness.ts";

interface Answer {
  readonly status: number;
  readonly body: string;
}

/** One request over a connection of its own. */
function ask(url: string, options: object, body: object | null = null): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const sent = request(url, { method: body === null ? "GET" : "POST", agent: false, ...options }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (piece: string) => {
        text += piece;
      });
      response.on("end", () => resolve({ status: response.statusCode!, body: text }));
    });
    sent.on("error", reject);
    sent.setHeader("content-type", "application/json");
    sent.end(body === null ? undefined : JSON.stringify(body));
  });
}

const CHAT = { model: "nano", messages: [{ role: "user", content: "Hi" }], stream: true };

describe.skipIf(!hasOpenssl)("a gateway that speaks TLS", () => {
  let authority: Authority;
  let stranger: Authority;
  let server: Certificate;
  beforeAll(() => {
    authority = new Authority();
    stranger = new Authority("a stranger");
    server = authority.issue("server");
  }, 60_000);
  afterAll(() => {
    authority[Symbol.dispose]();
    stranger[Symbol.dispose]();
  });

  const edge = ({ certFile, keyFile }: Certificate, clientAuthority: string | null) =>
    EdgeTls.open({ certificate: certFile, key: keyFile, clientAuthority }, systemClock, silentLogger);
  const serving = async (clientAuthority: string | null) =>
    startHarness(answering([300, 301, 302]), { tls: await edge(server, clientAuthority) });
  const shown = ({ certFile, keyFile }: Certificate) => ({
    ca: authority.ca,
    cert: readFileSync(certFile),
    key: readFileSync(keyFile),
  });

  test("streams over https to whoever knows its authority, and to nobody in the clear", async () => {
    await using harness = await serving(null);
    expect(harness.url).toMatch(/^https:/);
    const { status, body } = await ask(`${harness.url}/v1/chat/completions`, { ca: authority.ca }, CHAT);
    expect(status).toBe(200);
    expect(body).toContain('"finish_reason":"stop"');
    expect(body.trimEnd().endsWith("data: [DONE]")).toBe(true);
    await expect(ask(`${harness.url}/livez`, { ca: stranger.ca })).rejects.toThrow();
    await expect(fetch(`${harness.url.replace("https", "http")}/livez`)).rejects.toThrow();
  });

  test("clients with a certificate of the authority are served; without, of a stranger, or expired they are refused", async () => {
    await using harness = await serving(authority.caFile);
    const post = (options: object) => ask(`${harness.url}/v1/chat/completions`, options, CHAT);
    expect((await post(shown(authority.issue("client")))).status).toBe(200);
    for (const [options, sentence] of [
      [{ ca: authority.ca }, "need a certificate that is trusted here"],
      [shown(stranger.issue("other")), "need a certificate that is trusted here"],
      [shown(authority.issue("late", -1)), "time of the client's certificate is over"],
    ] as const) {
      const { status, body } = await post(options);
      expect(status, sentence).toBe(403);
      expect(JSON.parse(body)).toMatchObject({ error: { code: "not_allowed" } });
      expect(body).toContain(sentence);
    }
    expect(harness.flow.calls.length).toBe(1);
    expect((await ask(`${harness.url}/livez`, { ca: authority.ca })).status).toBe(200);
  });

  test("a certificate that was replaced is shown to the next connection; one that cannot be used is not", async () => {
    const own = { certFile: join(authority.folder, "own.crt"), keyFile: join(authority.folder, "own.key") };
    const put = async ({ certFile, keyFile }: Certificate) => {
      await copyFile(keyFile, `${own.keyFile}.new`);
      await copyFile(certFile, `${own.certFile}.new`);
      await rename(`${own.keyFile}.new`, own.keyFile);
      await rename(`${own.certFile}.new`, own.certFile);
    };
    await put(authority.issue("first"));
    const tls = await edge(own, null);
    await using harness = await startHarness(answering([300]), { tls });
    expect(await nameShown(harness.url)).toBe("first");
    await put(authority.issue("second"));
    await tls.look();
    expect(await nameShown(harness.url)).toBe("second");
    await writeFile(own.certFile, "no certificate");
    await tls.look();
    expect(await nameShown(harness.url)).toBe("second");
  });

  test("files that cannot be used are named, by their settings", async () => {
    const [one, other] = [authority.issue("one"), authority.issue("another")];
    await expect(edge({ ...one, certFile: "/nowhere/x.crt" }, null)).rejects.toThrow(
      "MARGAY_TLS_CERT_FILE=/nowhere/x.crt: the file cannot be read (ENOENT)",
    );
    await expect(edge({ ...one, keyFile: other.keyFile }, null)).rejects.toThrow(
      `MARGAY_TLS_KEY_FILE=${other.keyFile}`,
    );
    await expect(edge(one, one.keyFile)).rejects.toThrow(`MARGAY_TLS_CLIENT_CA_FILE=${one.keyFile}`);
  });

  /** The name in the certificate that the server shows now. */
  function nameShown(url: string): Promise<string> {
    const { hostname, port } = new URL(url);
    return new Promise((resolve, reject) => {
      const socket: TLSSocket = connect({ host: hostname, port: Number(port), ca: authority.ca }, () => {
        resolve(String(socket.getPeerCertificate().subject.CN));
        socket.destroy();
      });
      socket.on("error", reject);
    });
  }
});
