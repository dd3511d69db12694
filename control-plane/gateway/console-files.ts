import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { MargayError } from "#protocol/errors.ts";

const FOLDER = fileURLToPath(new URL("../console/", import.meta.url));
const TYPES: Readonly<Record<string, string>> = {
  html: "text/html; charset=utf-8",
  js: "text/javascript; charset=utf-8",
  css: "text/css; charset=utf-8",
  svg: "image/svg+xml",
};
/** All there is: nothing else of the folder, or outside it, can be asked for. */
const FILES: readonly string[] = [
  ...["index.html", "console.css", "margay.svg", "main.js", "api.js", "element.js", "figures.js", "theme.js"],
  ...["chat.js", "chat-answer.js", "chat-settings.js", "event-stream.js"],
  ...["fleet.js", "fleet-rates.js", "page-map.js", "requests.js", "timeline.js", "usage.js"],
];

/** The pages run this server's scripts alone, write no HTML from strings, and ask this server alone. */
const HEADERS = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  // Asked for again each time, and answered with 304 while it is the same.
  "cache-control": "no-cache",
} as const;

interface ConsoleFile {
  readonly type: string;
  readonly etag: string;
  readonly bytes: Buffer;
}

/** `/` and `/console/FILE`: the console. It holds nothing secret; what it shows it asks for with its reader's key. */
export function addConsoleRoutes(app: FastifyInstance): void {
  const files = new Map(FILES.map((name) => [name, read(name)]));
  app.get("/", (request, reply) => answer(files.get("index.html"), request, reply));
  app.get<{ Params: { file: string } }>("/console/:file", (request, reply) =>
    answer(files.get(request.params.file), request, reply),
  );
}

function read(name: string): ConsoleFile {
  const bytes = readFileSync(`${FOLDER}${name}`);
  const etag = `"${createHash("sha256").update(bytes).digest("base64url").slice(0, 22)}"`;
  return { type: TYPES[name.split(".").at(-1)!]!, etag, bytes };
}

function answer(file: ConsoleFile | undefined, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  if (file === undefined) throw new MargayError("not_found");
  reply.headers({ ...HEADERS, etag: file.etag });
  const known = (request.headers["if-none-match"] ?? "").split(",").map((tag) => tag.trim().replace(/^W\//, ""));
  if (known.includes(file.etag)) return reply.code(304).send();
  return reply.type(file.type).send(file.bytes);
}
