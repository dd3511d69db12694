import { setTimeout as sleep } from "node:timers/promises";
import { type ContainerRun, type Ended, RunningContainer } from "./container.ts";
import type { Handler, Probe } from "./objects.ts";
import { tryHandler } from "./probe.ts";

/** Pauses before a container that ended is started again: shorter than a real kubelet's, for the sake of the tests. */
const PAUSES_MS = [500, 1_000, 2_000, 5_000] as const;

interface Terminated {
  readonly exitCode: number;
  readonly reason: string;
  readonly message?: string;
  readonly startedAt: string;
  readonly finishedAt: string;
}

/**
 * One container of a pod, restarted as its pod's policy says, with its probes.
 *
 *   waiting -> running (started -> ready <-> not ready) -> terminated -> (waiting -> running)* | ended
 */
export class ContainerLife {
  readonly #run: ContainerRun;
  readonly #podIp: string;
  readonly #restart: "Always" | "OnFailure" | "Never";
  readonly #onChange: () => void;
  #running: RunningContainer | null = null;
  #startedAt = "";
  #started = false;
  #ready = false;
  #waiting: string | null = "ContainerCreating";
  #last: Terminated | null = null;
  #restarts = 0;
  #stopping = false;
  #killed = false;
  /** The exit code with which it ended for good. */
  readonly ended: Promise<number>;

  constructor(run: ContainerRun, podIp: string, restart: "Always" | "OnFailure" | "Never", onChange: () => void) {
    this.#run = run;
    this.#podIp = podIp;
    this.#restart = restart;
    this.#onChange = onChange;
    this.ended = this.#live();
  }

  get ready(): boolean {
    return this.#ready;
  }

  status(): object {
    const { name, image } = this.#run.container;
    const running = this.#running !== null;
    const state = running
      ? { running: { startedAt: this.#startedAt } }
      : this.#waiting !== null
        ? { waiting: { reason: this.#waiting } }
        : { terminated: this.#last };
    return {
      ...{
        name,
        image,
        imageID: image,
        ready: this.#ready,
        started: this.#started,
        restartCount: this.#restarts,
        state,
      },
      lastState: this.#last !== null && (running || this.#waiting !== null) ? { terminated: this.#last } : {},
    };
  }

  /** preStop, then SIGTERM, then at the end of the grace time SIGKILL. */
  async stop(graceMs: number): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    const killer = setTimeout(() => this.kill(), graceMs);
    const hook = this.#run.container.lifecycle?.preStop;
    const running = this.#running;
    if (hook !== undefined && running !== null) {
      await Promise.race([this.#try(hook, running, graceMs), this.ended]);
    }
    this.#running?.signal("SIGTERM");
    await this.ended;
    clearTimeout(killer);
  }

  kill(): void {
    this.#stopping = true;
    this.#killed = true;
    this.#running?.signal("SIGKILL");
  }

  async #live(): Promise<number> {
    for (;;) {
      const ended = await this.#once();
      const again = this.#restart === "Always" || (this.#restart === "OnFailure" && ended.exitCode !== 0);
      if (!again || this.#stopping) return ended.exitCode;
      this.#waiting = "CrashLoopBackOff";
      this.#onChange();
      const pauseEnds = performance.now() + PAUSES_MS[Math.min(this.#restarts, PAUSES_MS.length - 1)]!;
      while (!this.#stopping && performance.now() < pauseEnds) await sleep(50);
      if (this.#stopping) return ended.exitCode;
      this.#restarts++;
    }
  }

  async #once(): Promise<Ended> {
    if (this.#killed) return { exitCode: 137, tail: "" };
    const running = new RunningContainer(this.#run);
    const { container } = this.#run;
    this.#running = running;
    this.#startedAt = now();
    this.#started = container.startupProbe === undefined;
    this.#ready = this.#started && container.readinessProbe === undefined;
    this.#waiting = null;
    this.#onChange();
    void this.#probe(running);
    const ended = await running.ended;
    this.#running = null;
    this.#ready = false;
    this.#started = false;
    const message =
      container.terminationMessagePolicy === "FallbackToLogsOnError" && ended.exitCode !== 0 ? ended.tail : "";
    this.#last = {
      exitCode: ended.exitCode,
      reason: ended.exitCode === 0 ? "Completed" : "Error",
      ...(message === "" ? {} : { message }),
      startedAt: this.#startedAt,
      finishedAt: now(),
    };
    this.#onChange();
    return ended;
  }

  async #probe(running: RunningContainer): Promise<void> {
    const { startupProbe, readinessProbe, livenessProbe } = this.#run.container;
    if (startupProbe !== undefined) {
      const up = await this.#repeat(startupProbe, running, (right, wrong) =>
        right ? "end" : wrong ? "fail" : "go on",
      );
      if (!up) return;
      this.#started = true;
      this.#ready = readinessProbe === undefined;
      this.#onChange();
    }
    if (livenessProbe !== undefined) {
      void this.#repeat(livenessProbe, running, (_right, wrong) => (wrong ? "fail" : "go on"));
    }
    if (readinessProbe !== undefined) {
      void this.#repeat(readinessProbe, running, (right, wrong) => {
        if ((right && !this.#ready) || (wrong && this.#ready)) {
          this.#ready = right;
          this.#onChange();
        }
        return "go on";
      });
    }
  }

  /**
   * Tries a probe again and again while the container runs. `judge` hears whether it succeeded, and whether it failed for
   * the last time allowed; "fail" ends the container. Resolves with true at "end".
   */
  async #repeat(
    probe: Probe,
    running: RunningContainer,
    judge: (right: boolean, wrong: boolean) => "go on" | "end" | "fail",
  ): Promise<boolean> {
    const periodMs = (probe.periodSeconds ?? 10) * 1000;
    await sleep((probe.initialDelaySeconds ?? 0) * 1000);
    let failures = 0;
    while (this.#running === running && !this.#stopping) {
      const right = await this.#try(probe, running, (probe.timeoutSeconds ?? 1) * 1000);
      if (this.#running !== running || this.#stopping) return false;
      failures = right ? 0 : failures + 1;
      const verdict = judge(right, failures >= (probe.failureThreshold ?? 3));
      if (verdict === "end") return true;
      if (verdict === "fail") {
        running.signal("SIGTERM");
        setTimeout(() => this.#running === running && running.signal("SIGKILL"), 5_000);
        return false;
      }
      await sleep(periodMs);
    }
    return false;
  }

  #try(handler: Handler, running: RunningContainer, timeoutMs: number): Promise<boolean> {
    return tryHandler(handler, this.#run.container, running, this.#podIp, timeoutMs);
  }
}

function now(): string {
  return new Date().toISOString().replace(/\.\d+Z$/, "Z");
}
