import { readFile } from "node:fs/promises";
import { join } from "node:path";
import OpenAI from "openai";
import type { System } from "./system.ts";

/** For tests that kill the control plane: `margay up` starts it again, and its port changes with that. */

/** A client of the control plane that serves now. */
export async function openAiOf(system: System): Promise<OpenAI> {
  const run = JSON.parse(await readFile(join(system.stateFolder, "run.json"), "utf8")) as { readonly url: string };
  return new OpenAI({ baseURL: `${run.url}/v1`, apiKey: "none", maxRetries: 0 });
}

export async function controlPlanePid(system: System): Promise<number> {
  const children = await readFile(`/proc/${system.pid}/task/${system.pid}/children`, "utf8");
  for (const pid of children.trim().split(" ")) {
    if ((await readFile(`/proc/${pid}/cmdline`, "utf8")).includes("main.ts")) return Number(pid);
  }
  throw new Error("there is no control plane");
}
