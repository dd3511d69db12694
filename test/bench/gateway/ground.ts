import { type ChildProcess, spawn } from "node:child_process";
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { freePort } from "../../support/free-port.ts";
import { KeysFile, keyFor } from "../../support/keys-file.ts";
import { NatsServer } from "../../support/nats-server.ts";
import { type OtlpReceiver, startOtlpReceiver } from "../../support/otlp-receiver.ts";
import { waitFor } from "../../support/system.ts";

const root = fileURLToPath(new URL("../../..", import.meta.url));
export const CONTEXT = 131_072;
const TENANTS = ["one", "two"] as const;

/** A server to be measured. */
export interface Server {
  readonly url: string;
  readonly pid: number;
  stop(): Promise<void>;
}

/** How fast the simulated model is. Milliseconds. */
export interface Pace {
  readonly prefillMs: number;
  readonly stepMs: number;
  readonly slots: number;
}

/** Everything around the gateway: bus, keys of two tenants, a collector of spans. */
export class GatewayGround implements AsyncDisposable {
  readonly nats: NatsServer;
  readonly keys: Readonly<Record<(typeof TENANTS)[number], string>>;
  readonly #file: KeysFile;
  readonly #spans: OtlpReceiver;
  readonly #model: string;
  #workers = 0;

  private constructor(
    nats: NatsServer,
    file: KeysFile,
    keys: GatewayGround["keys"],
    spans: OtlpReceiver,
    model: string,
  ) {
    this.nats = nats;
    this.#file = file;
    this.keys = keys;
    this.#spans = spans;
    this.#model = model;
  }

  static async open(): Promise<GatewayGround> {
    const [one, two] = TENANTS.map((tenant) => keyFor(tenant));
    // Limits that nobody reaches: they are counted all the same.
    const limits = { requestsPerMinute: 1e6, tokensPerMinute: 1e9, concurrency: 100_000, monthlyBudget: "1000000" };
    const file = await KeysFile.with({
      tenants: { one: { limits }, two: { limits } },
      keys: [one!.line, two!.line],
      prices: { currency: "USD", models: { nano: { input: "1", output: "2" } } },
    });
    const keys = { one: one!.key, two: two!.key };
    return new GatewayGround(await NatsServer.start(), file, keys, await startOtlpReceiver(), await longNano());
  }

  /** A gateway with everything on, listening. */
  async gateway(settings: Readonly<Record<string, string>> = {}): Promise<Server> {
    const port = String(await freePort());
    const child = start(["test/bench/gateway/gateway-program.ts"], {
      ...{ MARGAY_NATS_URL: this.nats.url, MARGAY_NATS_USER: "control-plane" },
      MARGAY_NATS_PASSWORD: this.nats.credentials["control-plane"],
      ...{
        MARGAY_PORT: port,
        MARGAY_KEYS_FILE: this.#file.path,
        MARGAY_MODEL: `nano=${this.#model}`,
        MARGAY_MAX_WAITING: "20000",
      },
      ...{ MARGAY_TRACE_ENDPOINT: this.#spans.url, MARGAY_TRACE_SAMPLE: "0.01", MARGAY_LOG_LEVEL: "info" },
      ...settings,
    });
    const url = `http://127.0.0.1:${port}`;
    const answers = () =>
      fetch(`${url}/livez`).then(
        ({ ok }) => (ok ? true : null),
        () => null,
      );
    await waitFor("the gateway", answers, 30_000, child.log);
    return { url, pid: child.process.pid!, stop: child.stop };
  }

  /** Workers of the bundled model that compute nothing. */
  async workers(pace: Pace): Promise<{ stop(): Promise<void> }> {
    const argv = ["--name", `sim${this.#workers++}`, "--slots", String(pace.slots), ...paceOf(pace)];
    const child = start(["test/bench/gateway/workers-program.ts", ...argv], {
      MARGAY_NATS_URL: this.nats.url,
      NATS_PASSWORD_PREFILL: this.nats.credentials.prefill,
      NATS_PASSWORD_DECODE: this.nats.credentials.decode,
    });
    await child.said("serving");
    return child;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.nats[Symbol.asyncDispose]();
    await this.#file[Symbol.asyncDispose]();
    await this.#spans[Symbol.asyncDispose]();
    await rm(this.#model, { recursive: true, force: true });
  }
}

/** What a gateway reads of the bundled model, with a context of CONTEXT tokens. */
async function longNano(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "margay-long-"));
  for (const name of await readdir(join(root, "models/nano"))) {
    if (/^[a-z_]+\.(json|jinja)$/.test(name)) await cp(join(root, "models/nano", name), join(folder, name));
  }
  const config = JSON.parse(await readFile(join(folder, "config.json"), "utf8")) as object;
  await writeFile(join(folder, "config.json"), JSON.stringify({ ...config, max_position_embeddings: CONTEXT }));
  return folder;
}

/** The server that does nothing but stream. */
export async function bareServer(pace: Pace): Promise<Server> {
  const child = start(["test/bench/gateway/bare-program.ts", ...paceOf(pace)], {});
  const url = (await child.said("http://")).trim();
  return { url, pid: child.process.pid!, stop: child.stop };
}

function paceOf({ prefillMs, stepMs }: Pace): readonly string[] {
  return ["--prefill-ms", String(prefillMs), "--step-ms", String(stepMs)];
}

function start(argv: readonly string[], settings: Readonly<Record<string, string>>) {
  const environment = { PATH: process.env.PATH ?? "", HOME: process.env.HOME ?? "", ...settings };
  const child: ChildProcess = spawn(process.execPath, [join(root, argv[0]!), ...argv.slice(1)], {
    ...{ cwd: root, env: environment, stdio: ["ignore", "pipe", "pipe"] },
  });
  let log = "";
  let said = "";
  child.stdout!.setEncoding("utf8").on("data", (text: string) => (said += text));
  child.stderr!.setEncoding("utf8").on("data", (text: string) => (log += text));
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  return {
    process: child,
    log: () => log,
    said: (what: string) =>
      waitFor(
        `"${what}"`,
        () => {
          if (child.exitCode !== null) throw new Error(`the program ended\n${log}`);
          return said.includes(what) ? said : null;
        },
        30_000,
        () => log,
      ),
    async stop() {
      child.kill("SIGKILL");
      await ended;
    },
  };
}
