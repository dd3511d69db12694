import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { MargayError } from "#protocol/errors.ts";

const ORDER = ["GET", "HEAD", "POST", "DELETE"];

/** The paths that are answered and their methods, as they are added to a server. */
export class RouteTable {
  readonly #methods = new Map<string, Set<string>>();

  constructor(app: FastifyInstance) {
    app.addHook("onRoute", ({ url, method }) => {
      const methods = this.#methods.get(url) ?? new Set();
      for (const one of [method].flat()) methods.add(one);
      this.#methods.set(url, methods);
    });
  }

  /** `METHOD /path` of each, as they were added. */
  get all(): readonly string[] {
    return [...this.#methods].flatMap(([url, methods]) => [...methods].map((method) => `${method} ${url}`));
  }

  /** Methods of a path, as an `allow` header says them; null: nothing is there. */
  allowed(path: string): string | null {
    const bare = path.length > 1 ? path.replace(/\/$/, "") : path;
    const methods = new Set<string>();
    for (const [url, own] of this.#methods) {
      if (matches(url, bare)) for (const method of own) methods.add(method);
    }
    if (methods.size === 0) return null;
    return [...ORDER.filter((method) => methods.has(method)), "OPTIONS"].join(", ");
  }

  /** Answers what no route does: OPTIONS of a known path, a method that it lacks, or no path at all. */
  answerUnrouted(request: FastifyRequest, reply: FastifyReply): void {
    const allowed = this.allowed(request.url.split("?", 1)[0]!);
    if (allowed === null) throw new MargayError("not_found");
    reply.header("allow", allowed);
    if (request.method === "OPTIONS") return void reply.code(204).send();
    throw new MargayError("method_not_allowed", `This method is not allowed here; allowed are ${allowed}.`);
  }
}

function matches(url: string, path: string): boolean {
  const wanted = url.split("/");
  const given = path.split("/");
  if (wanted.at(-1) === "*" ? given.length < wanted.length : given.length !== wanted.length) return false;
  return wanted.every((part, i) => part === "*" || (part.startsWith(":") ? given[i] !== "" : part === given[i]));
}
