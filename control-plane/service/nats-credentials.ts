import { link, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { z } from "zod";
import { BUS_ROLES } from "#protocol/permissions.ts";
import type { Random } from "./clock.ts";
import type { NatsCredentials } from "./nats-config.ts";

/** Where the passwords of a state folder are. */
export function credentialsFile(stateFolder: string): string {
  return join(stateFolder, "nats-credentials.json");
}

const CredentialsFile = z.record(z.enum(BUS_ROLES), z.string().min(1));

/**
 * The NATS passwords kept in `file` (mode 0600), made at the first call. Two processes that begin together agree: the
 * file appears whole or not at all, and the later one reads the earlier one's.
 * Throws one sentence that names the file when it cannot be written, read or understood.
 */
export async function natsCredentials(file: string, random: Random): Promise<NatsCredentials> {
  const existing = await read(file);
  if (existing !== null) return existing;
  const fresh = Object.fromEntries(BUS_ROLES.map((role) => [role, random.hex(24)]));
  const draft = `${file}.${random.hex(4)}`;
  try {
    await mkdir(dirname(file), { recursive: true });
    await writeFile(draft, `${JSON.stringify(fresh, null, 2)}\n`, { mode: 0o600, flag: "wx" });
    await link(draft, file).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
    });
  } catch (error) {
    throw new Error(`The NATS credentials cannot be written to ${file}: ${(error as Error).message}`, { cause: error });
  } finally {
    await rm(draft, { force: true });
  }
  const written = await read(file);
  if (written === null) throw new Error(`The NATS credentials vanished from ${file}.`);
  return written;
}

async function read(file: string): Promise<NatsCredentials | null> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw new Error(`The NATS credentials cannot be read from ${file}: ${(error as Error).message}`, { cause: error });
  }
  try {
    return CredentialsFile.parse(JSON.parse(text));
  } catch {
    throw new Error(
      `${file} does not hold a password for each of ${BUS_ROLES.join(", ")}; delete it to make new ones.`,
    );
  }
}
