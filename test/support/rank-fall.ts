import { expect } from "vitest";
import type { Answer } from "./client.ts";
import type { ExchangeProxy, Fall } from "./exchange-proxy.ts";
import { logLines } from "./log-lines.ts";
import { type System, waitFor } from "./system.ts";

export type How = "killed" | "stopped" | "cut off";

/** Promised are 2 s until the others know and 5 s until they are a group again; three times as much on a loaded machine. */
const DETECTED_MS = 6_000;
const FORMED_MS = 15_000;

/**
 * Makes the process `pid`, rank 1 behind `proxy`, fall where `phase` says after `after` frames, while what `ask` sends keeps the
 * group at work. It is sent again where it ended without a fall: ranks between which a transfer failed a moment ago are left
 * alone, so that one of them may have nothing to exchange. Resolves, when the others are a group again within the promised
 * time, with the moment of the fall (epoch ms) and the answers that were under way then.
 */
export async function letRankFall(
  system: System,
  proxy: ExchangeProxy,
  fall: { readonly how: How; readonly phase: Fall["phase"]; readonly after: number; readonly pid: number },
  ask: () => Promise<Answer>[],
): Promise<{ readonly fellMs: number; readonly answers: readonly Promise<Answer>[] }> {
  const { how, phase, after, pid } = fall;
  const from = system.log().length;
  const fallen = proxy.fallen();
  let fellMs = 0;
  proxy.arm({
    phase,
    after,
    carryOut(cut) {
      fellMs = Date.now();
      if (how === "cut off") cut();
      else process.kill(pid, how === "killed" ? "SIGKILL" : "SIGSTOP");
    },
  });
  let answers: Promise<Answer>[] = [];
  let over = true;
  const fell = (): true | null => {
    if (proxy.fallen() > fallen) return true;
    if (over) {
      over = false;
      answers = ask();
      void Promise.allSettled(answers).then(() => {
        over = true;
      });
    }
    return null;
  };
  await waitFor("the fall", fell, 60_000, system.log);
  const detected = await waitFor(
    "the loss to be noticed",
    () => logLines(system, "the group is lost", from)[0] ?? null,
    60_000,
  );
  const formed = await waitFor(
    "the next group",
    () => logLines(system, "a group of ranks was formed", from).find(({ timeMs }) => timeMs >= fellMs) ?? null,
    60_000,
    system.log,
  );
  const [detectedMs, formedMs] = [detected.timeMs - fellMs, formed.timeMs - fellMs];
  process.stdout.write(`    ${how} in ${phase}: detected after ${detectedMs} ms, formed anew after ${formedMs} ms\n`);
  expect(detectedMs).toBeLessThan(DETECTED_MS);
  expect(formedMs).toBeLessThan(FORMED_MS);
  return { fellMs, answers };
}

/** Resolves when all `size` ranks of the role's one worker are one group, with its epoch. */
export function wholeGroup(system: System, role: "prefill" | "decode", size: number): Promise<number> {
  return waitFor(
    "a full group",
    async () => {
      const groups = (await system.ranks()).flatMap((rank) =>
        rank.role === role && rank.state === "ready" ? [rank.group] : [],
      );
      const whole = groups.length === size && groups.every((group) => group?.size === size);
      return whole ? (groups[0]?.epoch ?? null) : null;
    },
    60_000,
    system.log,
  );
}
