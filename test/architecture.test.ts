import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";

/** Executes the walls and doors that ARCHITECTURE.md describes. */

const root = fileURLToPath(new URL("..", import.meta.url));
const files = execFileSync("git", ["ls-files", "-co", "--exclude-standard"], { cwd: root, encoding: "utf8" })
  .split("\n")
  .filter((file) => file !== "" && existsSync(join(root, file)));
const sources = files.filter((file) => file.endsWith(".ts") && !file.startsWith("test/"));
const product = sources.filter((file) => /^(control-plane|prefill-node|decode-node|native)\//.test(file));
const text = new Map(
  files.filter((f) => /\.(ts|mjs|cc|h|md)$/.test(f)).map((f) => [f, readFileSync(join(root, f), "utf8")]),
);
const read = (file: string) => text.get(file) ?? "";

/** The code of a file without comments, so that prose may speak of what code may not do. */
function code(file: string): string {
  return read(file)
    .replace(/\/\*[\s\S]*?\*\//g, "")
    .replace(/(^|\s)\/\/.*$/gm, "$1");
}

interface Import {
  readonly from: string;
  /** Path inside the repository, or the name of a package. */
  readonly to: string;
  readonly local: boolean;
  /** Erased by type stripping: runs nothing. */
  readonly typeOnly: boolean;
}

const seams = { "#protocol/": "control-plane/protocol/", "#service/": "control-plane/service/" } as const;

/** A path inside the repository, or null for a package. */
function resolveLocal(from: string, name: string): string | null {
  if (name === "#native") return "native/binding/native.ts";
  if (name.startsWith(".")) return normalize(join(dirname(from), name));
  const seam = Object.entries(seams).find(([prefix]) => name.startsWith(prefix));
  return seam ? seam[1] + name.slice(seam[0].length) : null;
}

function importsOf(file: string): Import[] {
  const statement =
    /(?:^|\n)\s*(?:import|export)\s+([^;'"]*?)\s*from\s*"([^"]+)"|(?:^|\n)\s*import\s*"([^"]+)"|import\("([^"]+)"\)/g;
  return [...code(file).matchAll(statement)].map((match) => {
    const name = (match[2] ?? match[3] ?? match[4])!;
    const clause = match[1] ?? "";
    const names = /^\{([\s\S]*)\}$/
      .exec(clause)?.[1]
      ?.split(",")
      .map((n) => n.trim())
      .filter((n) => n !== "");
    const typeOnly = clause.startsWith("type ") || (names?.every((n) => n.startsWith("type ")) ?? false);
    const local = resolveLocal(file, name);
    return { from: file, to: local ?? name, local: local !== null, typeOnly };
  });
}

const imports = product.flatMap(importsOf);

/** The room a file belongs to: two levels inside control-plane, one elsewhere. */
function room(file: string): string {
  const parts = file.split("/");
  if (parts[0] === "control-plane") return parts.length > 2 ? parts[1]! : "control-plane";
  return parts[0]!;
}

/** Which rooms a room may import from, besides itself, protocol and service. */
const WALLS: Readonly<Record<string, readonly string[]>> = {
  protocol: [],
  service: [],
  native: [],
  "prefill-node": ["native"],
  "decode-node": ["native"],
  tokenizer: [],
  chat: ["tokenizer"],
  fleet: [],
  placement: ["fleet"],
  flow: ["placement", "fleet"],
  kube: [],
  groups: ["fleet"],
  scaling: ["fleet", "kube"],
  tenancy: [],
  // Made of the list of metrics alone; no process runs it.
  monitoring: [],
  gateway: ["tenancy", "flow", "chat", "tokenizer"],
  // The one that assembles everything, over simulated ground.
  simulate: [
    ...["control-plane", "gateway", "tenancy", "flow", "chat", "fleet", "scaling", "planner"],
    ...["native", "prefill-node", "decode-node"],
  ],
  planner: [],
  load: ["simulate"],
  cli: ["control-plane", "tenancy", "chat", "planner", "simulate", "load"],
  "control-plane": [
    "gateway",
    "tenancy",
    "flow",
    "chat",
    "tokenizer",
    "placement",
    "fleet",
    "groups",
    "scaling",
    "kube",
  ],
};

/** Third-party packages and the one place that may import each. */
const DOORS: Readonly<Record<string, RegExp>> = {
  nats: /^control-plane\/protocol\/bus\/(nats-bus|nats-journal)\.ts$/,
  "@msgpack/msgpack": /^control-plane\/protocol\/bus\/wire\.ts$/,
  "prom-client": /^control-plane\/service\/metrics\.ts$/,
  pino: /^control-plane\/service\/logger\.ts$/,
  "@kubernetes/client-node": /^control-plane\/kube\/kube-client\.ts$/,
  fastify: /^control-plane\/gateway\//,
  "@huggingface/tokenizers": /^control-plane\/tokenizer\//,
  "@mlc-ai/web-xgrammar": /^control-plane\/service\/grammar\/grammar-library\.ts$/,
  "@huggingface/jinja": /^control-plane\/chat\/templates\.ts$/,
  zod: /^(control-plane|prefill-node|decode-node)\//,
};

describe("walls", () => {
  test("every room imports only from the rooms below it", () => {
    const wrong = imports
      .filter((i) => i.local)
      .filter((i) => {
        const [from, to] = [room(i.from), room(i.to)];
        if (from === to) return false;
        if (to === "protocol") return false;
        if (to === "service") return from === "protocol" || from === "native";
        return !(WALLS[from] ?? []).includes(to);
      })
      .map((i) => `${i.from} -> ${i.to}`);
    expect(wrong).toEqual([]);
  });

  test("there is no cycle between files", () => {
    const graph = new Map<string, string[]>();
    for (const i of imports) {
      if (i.local && !i.typeOnly) graph.set(i.from, [...(graph.get(i.from) ?? []), i.to]);
    }
    const done = new Set<string>();
    const cycles: string[] = [];
    const visit = (file: string, path: readonly string[]): void => {
      if (path.includes(file)) {
        cycles.push([...path.slice(path.indexOf(file)), file].join(" -> "));
        return;
      }
      if (done.has(file)) return;
      for (const next of graph.get(file) ?? []) visit(next, [...path, file]);
      done.add(file);
    };
    for (const file of product) visit(file, []);
    expect(cycles).toEqual([]);
  });

  test("what is imported exists", () => {
    expect(imports.filter((i) => i.local && !existsSync(join(root, i.to))).map((i) => `${i.from} -> ${i.to}`)).toEqual(
      [],
    );
  });

  test("nothing outside test/ imports from it", () => {
    expect(imports.filter((i) => i.to.startsWith("test/")).map((i) => i.from)).toEqual([]);
  });
});

describe("doors", () => {
  test("each package is imported at its one door", () => {
    const wrong = imports
      .filter((i) => !i.local && !i.to.startsWith("node:"))
      .filter((i) => {
        const name = i.to.startsWith("@") ? i.to.split("/").slice(0, 2).join("/") : i.to.split("/")[0]!;
        return !DOORS[name]?.test(i.from);
      })
      .map((i) => `${i.from} -> ${i.to}`);
    expect(wrong).toEqual([]);
  });

  test("napi.h is included by the addon alone", () => {
    const users = [...text].filter(([f, t]) => /\.(cc|h)$/.test(f) && /#include\s*[<"]napi\.h/.test(t)).map(([f]) => f);
    expect(users.filter((f) => !f.startsWith("native/src/addon/"))).toEqual([]);
    expect(users.length).toBeGreaterThan(0);
  });

  test("the environment is read in config.ts and the command line only", () => {
    const wrong = product.filter(
      (f) => /process\.env\b/.test(code(f)) && !/(^|\/)config\.ts$|^control-plane\/cli\//.test(f),
    );
    expect(wrong).toEqual([]);
  });

  test("time, timers and randomness come from service/clock.ts", () => {
    const forbidden =
      /\b(Date\.now|new Date\b|performance\.now|setTimeout\(|setInterval\(|setImmediate\(|Math\.random|randomUUID|randomBytes|randomInt|process\.hrtime|AbortSignal\.timeout)/;
    const wrong = product
      .filter((f) => f !== "control-plane/service/clock.ts")
      .map((f) => [f, code(f).match(forbidden)?.[0]] as const)
      .filter(([, hit]) => hit !== undefined)
      .map(([f, hit]) => `${f}: ${hit}`);
    expect(wrong).toEqual([]);
  });

  test("subjects are spelled in subjects.ts alone", () => {
    const wrong = product.filter(
      (f) => f !== "control-plane/protocol/subjects.ts" && /["'`]margay\.(fleet|rank|gateway|operator)\b/.test(code(f)),
    );
    expect(wrong).toEqual([]);
  });

  test("every metric named in the code is declared", () => {
    const declarations = ["control-plane/protocol/metrics.ts", "control-plane/protocol/tenant-metrics.ts"];
    const declared = declarations.map(read).join("");
    const wrong = product
      .filter((f) => !declarations.includes(f))
      .flatMap((f) => [...code(f).matchAll(/["'`](margay_[a-z_]+)["'`]/g)].map((m) => [f, m[1]!] as const))
      .filter(([, name]) => !declared.includes(name))
      .map(([f, name]) => `${f}: ${name}`);
    expect(wrong).toEqual([]);
  });
});

describe("C++ layers", () => {
  const LAYERS: Readonly<Record<string, readonly string[]>> = {
    core: [],
    kernels: ["core"],
    weights: ["core", "kernels"],
    comm: ["core", "kernels"],
    model: ["core", "kernels", "weights", "comm"],
    kv: ["core"],
    transport: ["core", "kv"],
    engine: ["core", "kernels", "model", "comm", "kv", "transport", "weights"],
    addon: ["core", "kernels", "model", "comm", "kv", "transport", "weights", "engine"],
  };

  test("nothing points back", () => {
    const wrong: string[] = [];
    for (const [file, content] of text) {
      const layer = /^native\/src\/([a-z]+)\//.exec(file)?.[1];
      if (layer === undefined) continue;
      for (const match of content.matchAll(/#include\s*"([a-z]+)\//g)) {
        if (match[1] !== layer && !LAYERS[layer]?.includes(match[1]!)) wrong.push(`${file} -> ${match[1]}`);
      }
    }
    expect(wrong).toEqual([]);
  });

  test("kernel files of a higher instruction set include no standard library", () => {
    const allowed = /#include\s*(<(cstdint|cstddef|immintrin\.h|arm_neon\.h)>|"[^"]+")/;
    const wrong = [...text]
      .filter(([f]) => /_(avx2|avx512|avx512bf16|avx512vnni|amx|neon)\.cc$/.test(f))
      .flatMap(([f, t]) =>
        [...t.matchAll(/#include.*/g)].filter((m) => !allowed.test(m[0])).map((m) => `${f}: ${m[0]}`),
      );
    expect(wrong).toEqual([]);
  });
});

describe("names and sizes", () => {
  test("no folder or file is a drawer for odds and ends", () => {
    expect(
      files.filter((f) => /(^|\/)(utils?|helpers?|common|misc|shared|lib|types|manager)(\/|\.[a-z]+$)/.test(f)),
    ).toEqual([]);
  });

  test("the top level holds what the house plan names", () => {
    const folders = new Set(files.filter((f) => f.includes("/")).map((f) => f.split("/")[0]!));
    const allowed = [
      "control-plane",
      "prefill-node",
      "decode-node",
      "native",
      "helm",
      "docs",
      "test",
      "models",
      "bin",
      ".ci",
    ];
    expect([...folders].filter((f) => !allowed.includes(f))).toEqual([]);
  });

  test("no file outgrew one idea", () => {
    const limit = (f: string) => (/\.(cu|cuh)$/.test(f) ? 800 : /\.(cc|h)$/.test(f) ? 500 : 400);
    const long = [...text]
      .filter(([f]) => /\.(ts|mjs|cc|h)$/.test(f) && !f.startsWith("test/fixtures/"))
      .map(([f, t]) => [f, t.split("\n").length - 1] as const)
      .filter(([f, lines]) => lines > limit(f))
      .map(([f, lines]) => `${f}: ${lines} lines`);
    expect(long).toEqual([]);
  });

  test("file names are kebab-case", () => {
    const wrong = product.filter((f) => !/^[a-z0-9-]+(\.[a-z0-9-]+)*\.ts$/.test(f.split("/").at(-1)!));
    expect(wrong).toEqual([]);
  });
});

describe("documents", () => {
  test("files named in the documents exist", () => {
    const wrong: string[] = [];
    for (const [file, content] of text) {
      if (!file.endsWith(".md") || file.startsWith("models/") || file.startsWith("test/fixtures/")) continue;
      for (const match of content.matchAll(
        /`((?:control-plane|prefill-node|decode-node|native|helm|test|bin|models|\.ci)\/[A-Za-z0-9_./-]*[A-Za-z0-9_/])`/g,
      )) {
        if (!existsSync(join(root, match[1]!))) wrong.push(`${file}: ${match[1]}`);
      }
      for (const match of content.matchAll(/\]\((?!https?:|#)([^)#]+)/g)) {
        if (!existsSync(join(root, dirname(file), match[1]!))) wrong.push(`${file}: ${match[1]}`);
      }
    }
    expect(wrong).toEqual([]);
  });
});
