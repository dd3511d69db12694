import { runService, type ServiceContext } from "#service/run-service.ts";
import { SettingsError } from "#service/settings.ts";

/** A process for run-service.test.ts; its one argument says how it behaves. */
const behaviour = process.argv[2];

await runService({
  name: "toy",
  configure() {
    if (behaviour === "bad-config") throw new SettingsError("MARGAY_PORT=abc: must be a whole number");
    return { logLevel: behaviour === "bad-start-debug" ? ("debug" as const) : ("info" as const), drainMs: 500 };
  },
  async create(config, context: ServiceContext) {
    if (behaviour === "bad-create") throw new Error("The model folder /nowhere does not exist.");
    if (behaviour === "slow-create") {
      say("creating");
      await context.clock.sleep(60_000, context.signal);
    }
    const alive = setInterval(() => {}, 1000);
    return {
      async start() {
        if (behaviour?.startsWith("bad-start")) throw new Error("Port 1 is in use.");
        say("started");
        context.tellParent({ kind: "ready" });
        if (behaviour === "stray-rejection") void Promise.reject(new Error("nobody waits"));
        if (behaviour === "stray-exception") setTimeout(() => JSON.parse("{"), 1);
        if (behaviour === "fails-later") setTimeout(() => context.fail(new Error("The engine thread ended.")), 1);
        if (behaviour === "stops-itself") setTimeout(() => context.stop("asked over the bus"), 1);
      },
      async drain(deadlineMs) {
        say(`draining ${Math.round((deadlineMs - context.clock.now()) / 100) * 100}`);
        if (behaviour === "never-drains") await context.clock.sleep(60_000);
        if (behaviour === "fails-draining") context.fail(new Error("The engine thread ended."));
        if (behaviour === "bad-drain") throw new Error("a request could not be handed back");
        await context.clock.sleep(config.drainMs / 10);
        say("drained");
      },
      async [Symbol.asyncDispose]() {
        clearInterval(alive);
        say("disposed");
      },
    };
  },
});

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}
