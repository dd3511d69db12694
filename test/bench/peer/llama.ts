import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { arch } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { writeTwinModel } from "./gguf.ts";

const VERSION = "3.22.1";
const folder = fileURLToPath(new URL("../../../.margay/bench/llama", import.meta.url));
const driver = fileURLToPath(new URL("llama.cc", import.meta.url));

/** Where native/bench/engine finds the other engine (frame/peer.h). Disposing removes the model, 2.5 GB. */
export interface Peer extends Disposable {
  readonly library: string;
  readonly model: string;
}

/** Gets llama.cpp, which comes with node-llama-cpp, and makes a model for it. A string says why it cannot be had. */
export function openLlama(): Peer | string {
  const library = join(folder, `driver-${VERSION}.so`);
  const wrong = existsSync(library) ? null : build(library);
  if (wrong !== null) return wrong;
  const place = mkdtempSync(`${existsSync("/dev/shm") ? "/dev/shm" : "/tmp"}/margay-bench-`);
  const remove = () => rmSync(place, { recursive: true, force: true });
  // Also when the benchmark is interrupted.
  process.once("exit", remove);
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(130));
  const model = join(place, "twin.gguf");
  writeTwinModel(model);
  return { library, model, [Symbol.dispose]: remove };
}

/** Returns null, or why it failed. */
function build(library: string): string | null {
  mkdirSync(folder, { recursive: true });
  const packages = [`node-llama-cpp@${VERSION}`, `@node-llama-cpp/linux-${arch()}@${VERSION}`];
  const npm = [
    "install",
    "--prefix",
    folder,
    "--no-save",
    "--omit=optional",
    "--omit=peer",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
  ];
  const modules = join(folder, "node_modules");
  const source = join(folder, "source");
  const bundle = join(modules, "node-llama-cpp", "llama", "gitRelease.bundle");
  const headers = ["include", "ggml/include"];
  const tree = ["-C", source, "--work-tree", source];
  rmSync(source, { recursive: true, force: true });
  const steps: readonly (readonly [program: string, argv: readonly string[]])[] = [
    ["npm", [...npm, ...packages]],
    ["git", ["init", "-q", source]],
    ["git", [...tree, "fetch", "-q", bundle, "HEAD"]],
    ["git", [...tree, "checkout", "-q", "FETCH_HEAD", "--", ...headers]],
  ];
  for (const [program, argv] of steps) {
    const wrong = run(program, argv);
    if (wrong !== null) return wrong;
  }
  const binaries = join(modules, "@node-llama-cpp", `linux-${arch()}`, "bins", `linux-${arch()}`);
  const libraries = readdirSync(binaries).filter((name) => /^lib(llama|ggml)(\.v[\d.]+|-base)?\.so$/.test(name));
  return run(process.env.CXX ?? "c++", [
    ...["-shared", "-fPIC", "-O2", "-std=c++20", "-o", library, driver, `-Wl,-rpath,${binaries}`],
    ...headers.map((path) => `-I${join(source, path)}`),
    ...libraries.map((name) => join(binaries, name)),
  ]);
}

function run(program: string, argv: readonly string[]): string | null {
  const done = spawnSync(program, [...argv], { encoding: "utf8", timeout: 5 * 60_000 });
  if (done.status === 0) return null;
  const words = (done.stderr ?? "").trim().split("\n").at(-1) ?? "";
  return `${program} failed: ${done.error?.message ?? words}`;
}
