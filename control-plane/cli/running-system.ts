import { readFile } from "node:fs/promises";
import { z } from "zod";
import { cliConfig } from "./config.ts";

/** What `margay up` leaves in the state folder while it runs. */
export const RunFile = z.strictObject({ pid: z.int().min(1), url: z.string(), natsUrl: z.string() });
export type RunFile = z.infer<typeof RunFile>;

/** The system running on this machine, or null. A file left behind by a killed process does not count. */
export async function findRunningSystem(runFile: string): Promise<RunFile | null> {
  const text = await readFile(runFile, "utf8").catch(() => null);
  if (text === null) return null;
  const parsed = RunFile.safeParse(JSON.parse(text));
  if (!parsed.success) return null;
  try {
    process.kill(parsed.data.pid, 0);
    return parsed.data;
  } catch {
    return null;
  }
}

/** Like `findRunningSystem`, but its absence is an error that says what to do. */
export async function runningSystem(): Promise<RunFile> {
  const { runFile } = cliConfig();
  const found = await findRunningSystem(runFile);
  if (found === null) throw new Error("Margay is not running here; start it with `npm start`");
  return found;
}
