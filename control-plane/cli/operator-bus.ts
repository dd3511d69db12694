import { silentObserver } from "#protocol/bus/bus.ts";
import { connectNats } from "#protocol/bus/nats-bus.ts";
import { systemClock, systemRandom } from "#service/clock.ts";
import { credentialsFile, natsCredentials } from "#service/nats-credentials.ts";
import { cliConfig } from "./config.ts";
import { runningSystem } from "./running-system.ts";

const CONNECT_MS = 5_000;
const CLOSE_MS = 1_000;

/** The bus as the operator's user; closes with its scope. */
export async function operatorBus() {
  const { natsUrl } = await runningSystem();
  const { stateFolder, natsTls: tls } = cliConfig();
  const credentials = await natsCredentials(credentialsFile(stateFolder), systemRandom);
  const bus = await connectNats({
    url: natsUrl,
    user: "operator",
    password: credentials.operator,
    tls,
    role: "operator",
    name: "margay-cli",
    connectTimeoutMs: CONNECT_MS,
    timers: systemClock,
    random: systemRandom,
    observer: silentObserver,
  });
  return {
    request: bus.request.bind(bus) as typeof bus.request,
    [Symbol.asyncDispose]: () => bus.close(CLOSE_MS),
  };
}
