import { type ChildProcess, spawn } from "node:child_process";
import type { Clock } from "#service/clock.ts";

interface ChildSpec {
  readonly name: string;
  readonly command: string;
  readonly argv: readonly string[];
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** A Node process that drains when its parent is gone. */
  readonly channel: boolean;
  readonly onMessage?: (message: unknown) => void;
  /** Asked after a crash: false gives up at once. */
  readonly restart?: () => boolean;
}

interface Supervised {
  /** Resolves when the child has ended for good. */
  stop(graceMs: number): Promise<void>;
}

/** Crashes in a row after which a child that never ran for STABLE_MS is given up. */
const MOST_CRASHES = 5;
const STABLE_MS = 10_000;
const LONGEST_PAUSE_MS = 10_000;

/**
 * Keeps one child process running: started -> running -> (crashed -> pause -> started)* -> stopped.
 *
 * The child has its own process group, so that Ctrl-C reaches this process alone and children end in order.
 * A crash is said and answered by a restart after a growing pause; `onGiveUp` is called when restarting does not help.
 */
export function supervise(
  spec: ChildSpec,
  clock: Clock,
  say: (text: string) => void,
  onGiveUp: () => void,
): Supervised {
  let child: ChildProcess | null = null;
  let stopping = false;
  let crashes = 0;
  let ended: Promise<void> = Promise.resolve();

  const start = (): void => {
    const startedMs = clock.monotonic();
    const running = spawn(spec.command, spec.argv, {
      env: { ...spec.environment },
      detached: true,
      stdio: ["ignore", "inherit", "inherit", ...(spec.channel ? (["ipc"] as const) : [])],
    });
    child = running;
    if (spec.onMessage) running.on("message", spec.onMessage);
    ended = new Promise((resolve) => {
      const onEnd = (how: string): void => {
        child = null;
        resolve();
        if (stopping) return;
        crashes = clock.monotonic() - startedMs > STABLE_MS ? 1 : crashes + 1;
        if (crashes > MOST_CRASHES || spec.restart?.() === false) {
          say(`${spec.name} ${how}${crashes > 1 ? ` ${crashes} times in a row` : ""}; giving up`);
          onGiveUp();
          return;
        }
        const pauseMs = Math.min(LONGEST_PAUSE_MS, 250 * 2 ** (crashes - 1));
        say(`${spec.name} ${how}; starting it again in ${pauseMs} ms`);
        // `sleep` keeps this process alive where a timer of `after` would not.
        void clock.sleep(pauseMs).then(() => {
          if (!stopping) start();
        });
      };
      running.once("error", (error) => onEnd(`could not be started (${error.message})`));
      running.once("exit", (code, signal) =>
        onEnd(signal === null ? `ended with code ${code}` : `was ended by ${signal}`),
      );
    });
  };

  start();
  return {
    async stop(graceMs) {
      stopping = true;
      if (child === null) return;
      child.kill("SIGTERM");
      const kill = clock.after(graceMs, () => child?.kill("SIGKILL"));
      await ended;
      kill.cancel();
    },
  };
}
