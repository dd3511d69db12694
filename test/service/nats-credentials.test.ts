import { mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { BUS_ROLES } from "#protocol/permissions.ts";
import { systemRandom } from "#service/clock.ts";
import { natsConfig } from "#service/nats-config.ts";
import { credentialsFile, natsCredentials } from "#service/nats-credentials.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "margay-credentials-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

test("passwords are made once, one per role, readable by the owner alone", async () => {
  const file = credentialsFile(join(folder, "state"));
  const first = await natsCredentials(file, systemRandom);
  expect(Object.keys(first).sort()).toEqual([...BUS_ROLES].sort());
  expect(new Set(Object.values(first)).size).toBe(BUS_ROLES.length);
  expect((await stat(file)).mode & 0o777).toBe(0o600);
  expect(await natsCredentials(file, systemRandom)).toEqual(first);
  expect(await readdir(join(folder, "state"))).toHaveLength(1);
});

test("processes that begin together agree", async () => {
  const file = credentialsFile(folder);
  const all = await Promise.all(Array.from({ length: 20 }, () => natsCredentials(file, systemRandom)));
  for (const one of all) expect(one).toEqual(all[0]);
});

test("a broken file is named, with what to do", async () => {
  const file = credentialsFile(folder);
  for (const text of ["", "{", '{"decode":"x"}', "[]"]) {
    await writeFile(file, text);
    await expect(natsCredentials(file, systemRandom)).rejects.toThrow(
      `${file} does not hold a password for each of control-plane, prefill, decode, operator; delete it`,
    );
  }
});

test("a folder that cannot be written is named", async () => {
  await writeFile(join(folder, "state"), "a file, not a folder");
  await expect(natsCredentials(join(folder, "state", "x.json"), systemRandom)).rejects.toThrow(
    /^The NATS credentials cannot be .* state\/x.json|^The NATS credentials cannot be/,
  );
});

test("the server configuration quotes what it is given", () => {
  const text = natsConfig({
    host: "127.0.0.1",
    port: 4222,
    portsFolder: '/tmp/a "b"/ports',
    storeFolder: "/tmp/js",
    credentials: { "control-plane": 'pa"ss\\', prefill: "p", decode: "d", operator: "o" },
  });
  expect(text).toContain('ports_file_dir: "/tmp/a \\"b\\"/ports"');
  expect(text).toContain('password: "pa\\"ss\\\\"');
  expect(text).toContain('listen: "127.0.0.1:4222"');
});
