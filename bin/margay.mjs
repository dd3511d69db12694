#!/usr/bin/env node
// `margay ...` as an installed command: the same as `npm run margay -- ...`.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const setup = fileURLToPath(new URL("setup.mjs", import.meta.url));
const done = spawnSync(process.execPath, [setup, "margay", ...process.argv.slice(2)], { stdio: "inherit" });
process.exit(done.status ?? 1);
