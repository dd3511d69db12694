import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type Bus, silentObserver } from "#protocol/bus/bus.ts";
import { connectNats } from "#protocol/bus/nats-bus.ts";
import { StatusQuery, StatusReport } from "#protocol/operator.ts";
import { subjects } from "#protocol/subjects.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { credentialsFile, natsCredentials } from "#service/nats-credentials.ts";
import { RunFile } from "../../control-plane/cli/running-system.ts";

const ANSWER_MS = 5_000;

/**
 * Owns a connection to the bus of one system as its operator. It asks what `margay status` asks, without a process for each
 * question, so that a test sees what is the case now and not a second ago.
 */
export class OperatorStatus {
  readonly #stateFolder: string;
  #bus: Promise<Bus> | null = null;

  constructor(stateFolder: string) {
    this.#stateFolder = stateFolder;
  }

  /** What the control plane tells. Rejects where it does not answer in time; the next question connects anew. */
  async ask(): Promise<StatusReport> {
    this.#bus ??= this.#connect();
    try {
      const bus = await this.#bus;
      return await bus.request(
        subjects.operatorStatus(),
        StatusQuery,
        { kind: "status-query" },
        StatusReport,
        ANSWER_MS,
      );
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  async close(): Promise<void> {
    const bus = this.#bus;
    this.#bus = null;
    await bus?.then((open) => open.close(1_000)).catch(() => {});
  }

  async #connect(): Promise<Bus> {
    const { natsUrl } = RunFile.parse(JSON.parse(await readFile(join(this.#stateFolder, "run.json"), "utf8")));
    const { operator } = await natsCredentials(credentialsFile(this.#stateFolder), systemRandom);
    return connectNats({
      url: natsUrl,
      user: "operator",
      password: operator,
      tls: null,
      role: "operator",
      name: "margay-test",
      connectTimeoutMs: ANSWER_MS,
      timers: systemClock,
      random: systemRandom,
      observer: silentObserver,
    });
  }
}
