#!/usr/bin/env node
// Builds native/build/margay.node, on any Node >= 20. With --tests also the programs in native/build/tests,
// with --bench those in native/build/bench.
// An unchanged tree costs one look at sizes and times of the sources. One build at a time; a second waits for the first.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { fail, onPath, say } from "../bin/terminal.mjs";

const native = fileURLToPath(new URL(".", import.meta.url));
const root = join(native, "..");
const buildFolder = join(native, "build");
const lockPath = join(buildFolder, ".building");
const withTests = process.argv.includes("--tests");
const withBench = process.argv.includes("--bench");
const extras = [...(withTests ? ["tests"] : []), ...(withBench ? ["bench"] : [])];
const stampPath = join(buildFolder, [".built", ...extras].join("-with-"));
const headers = ["node-api-headers/include", "node-addon-api"].map((folder) => join(root, "node_modules", folder));

function* sources(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* sources(path);
    else if (/\.(cc|h|cu|cuh)$/.test(entry.name)) yield path;
  }
}

/** Changes when a source, a header of Node-API or this script does. */
function stampOfTree() {
  const hash = createHash("sha256");
  const folders = [
    join(native, "src"),
    ...extras.map((folder) => join(native, folder)).filter((folder) => existsSync(folder)),
  ];
  const files = [
    ...folders.flatMap((folder) => [...sources(folder)]),
    join(native, "CMakeLists.txt"),
    fileURLToPath(import.meta.url),
  ];
  for (const path of [...files, ...headers.map((folder) => join(folder, "..", "package.json"))].sort()) {
    const facts = statSync(path, { throwIfNoEntry: false });
    hash.update(`${path} ${facts?.size} ${facts?.mtimeMs}\n`);
  }
  return hash.digest("hex");
}

function isBuilt(stamp) {
  return (
    existsSync(stampPath) && readFileSync(stampPath, "utf8") === stamp && existsSync(join(buildFolder, "margay.node"))
  );
}

function requireTools() {
  const missing = [];
  if (process.env.CXX === undefined && !["c++", "g++", "clang++"].some(onPath))
    missing.push("a C++20 compiler (Debian: g++)");
  if (onPath("cmake") === null) missing.push("cmake");
  if (onPath("ninja") === null && onPath("make") === null) missing.push("ninja or make");
  if (missing.length > 0) fail(`the native part cannot be built here: ${missing.join(", ")} not found on PATH`);
  for (const folder of headers) {
    if (!existsSync(folder)) fail(`the native part cannot be built here: ${folder} is missing (run \`npm ci\`)`);
  }
}

function alive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}

/** Waits for a build of another process; a lock whose owner is gone is taken over. */
async function lock() {
  mkdirSync(buildFolder, { recursive: true });
  const deadline = Date.now() + 20 * 60_000;
  for (let told = false; ; ) {
    try {
      writeFileSync(lockPath, String(process.pid), { flag: "wx" });
      process.on("exit", () => rmSync(lockPath, { force: true }));
      return;
    } catch (error) {
      if (error.code !== "EEXIST") fail(`${buildFolder} cannot be written: ${error.message}`);
    }
    const owner = existsSync(lockPath) ? Number(readFileSync(lockPath, "utf8")) : 0;
    const age = Date.now() - (statSync(lockPath, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());
    if (owner > 0 ? !alive(owner) : age > 5_000) {
      rmSync(lockPath, { force: true });
      continue;
    }
    if (!told) say("waiting for another build ...");
    told = true;
    if (Date.now() > deadline) fail(`another build (process ${owner}) does not end; remove ${lockPath} if it is gone`);
    await sleep(200);
  }
}

/** Runs a build tool; on a terminal the last "[3/40]" or "[ 7%]" is shown in place. */
function run(program, argv) {
  return new Promise((resolve) => {
    const child = spawn(program, argv, { cwd: native, stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    const take = (bytes) => {
      const text = bytes.toString();
      output += text;
      const progress = [...text.matchAll(/^\[\s*(\d+(?:\/\d+|%))\]/gm)].at(-1);
      if (progress !== undefined && process.stderr.isTTY) process.stderr.write(`\rmargay: building ${progress[1]}   `);
    };
    child.stdout.on("data", take);
    child.stderr.on("data", take);
    child.on("error", (error) => resolve({ ok: false, output: error.message }));
    child.on("close", (code) => {
      if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
      resolve({ ok: code === 0, output });
    });
  });
}

/** Errors first: a compiler's own lines, else the end of the output. */
function essence(output) {
  const lines = output.trimEnd().split("\n");
  const first = lines.findIndex((line) => /error|Error|FAILED/.test(line));
  return lines.slice(first < 0 ? -20 : first, first < 0 ? undefined : first + 25).join("\n");
}

/** The generator of an existing build folder is kept; a folder configured for another tree or lost tool is cleared. */
function chooseGenerator() {
  const cachePath = join(buildFolder, "CMakeCache.txt");
  if (existsSync(cachePath)) {
    const cache = readFileSync(cachePath, "utf8");
    const generator = /^CMAKE_GENERATOR:INTERNAL=(.*)$/m.exec(cache)?.[1];
    const home = /^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$/m.exec(cache)?.[1];
    const tool = generator === "Ninja" ? "ninja" : "make";
    if (home !== undefined && join(home, ".") === join(native, ".") && onPath(tool) !== null) return generator;
    rmSync(cachePath, { force: true });
    rmSync(join(buildFolder, "CMakeFiles"), { recursive: true, force: true });
  }
  return onPath("ninja") !== null ? "Ninja" : "Unix Makefiles";
}

const stamp = stampOfTree();
if (isBuilt(stamp)) process.exit(0);
requireTools();
await lock();
if (isBuilt(stamp)) process.exit(0);
const startMs = Date.now();
say("building the native part ...");
const configured = await run("cmake", [
  "-S",
  native,
  "-B",
  buildFolder,
  "-G",
  chooseGenerator(),
  "-DCMAKE_BUILD_TYPE=Release",
  `-DMARGAY_NODE_INCLUDES=${headers.join(";")}`,
  "-DMARGAY_TESTS=ON",
]);
if (!configured.ok) fail(`cmake could not configure the native part:\n${essence(configured.output)}`);
const targets = [withTests ? "all" : "margay", ...(withBench ? ["margay_bench"] : [])];
const built = await run("cmake", [
  "--build",
  buildFolder,
  "--parallel",
  String(availableParallelism()),
  "--target",
  ...targets,
]);
if (!built.ok) fail(`the native part does not compile:\n${essence(built.output)}`);
writeFileSync(stampPath, stamp);
say(`built the native part in ${((Date.now() - startMs) / 1000).toFixed(0)} s`);
