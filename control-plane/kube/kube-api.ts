import { z } from "zod";

/** How a body is meant: a whole object, or one of the two kinds of patch that are used here. */
export type BodyType = "application/json" | "application/merge-patch+json" | "application/strategic-merge-patch+json";

export interface KubeCall {
  readonly method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  /** From the root of the API: `/api/v1/namespaces/default/pods`. */
  readonly path: string;
  readonly query?: Readonly<Record<string, string>>;
  readonly body?: object;
  readonly bodyType?: BodyType;
}

/** The API server of a cluster, as this program's user. */
export interface KubeApi {
  /** One request and its JSON answer. Rejects with a `KubeError`; bounded by a deadline of its own. */
  call(call: KubeCall): Promise<unknown>;
  /**
   * Reads a watch, line by line, until the server ends it or it falls silent (resolves) or it breaks (rejects with a
   * `KubeError`). `signal` ends it.
   */
  watch(
    path: string,
    query: Readonly<Record<string, string>>,
    onEvent: (event: unknown) => void,
    signal: AbortSignal,
  ): Promise<void>;
}

/** What the API server said no to, or that it could not be asked. */
export class KubeError extends Error {
  override readonly name = "KubeError";
  /** HTTP status; null: there was no answer. */
  readonly status: number | null;

  constructor(message: string, status: number | null, options?: ErrorOptions) {
    super(message, options);
    this.status = status;
  }

  /** The server was asked and said no: asking again changes nothing until somebody changes something. */
  get refused(): boolean {
    return this.status !== null && this.status >= 400 && this.status < 500 && this.status !== 429;
  }
}

const Status = z.object({ message: z.string().optional(), reason: z.string().optional() });

/** The error of an answer that is none of 2xx. A 403 names what is missing: a verb on a resource. */
export function refusal(
  call: { readonly method: string; readonly path: string },
  status: number,
  text: string,
): KubeError {
  let said = text.slice(0, 300);
  try {
    said = Status.parse(JSON.parse(text)).message ?? said;
  } catch {
    // Not a Status object: a proxy between, say. Its own text has to do.
  }
  return new KubeError(`${call.method} ${call.path}: ${status} ${said}`, status);
}

export function isKubeError(error: unknown, status: number): error is KubeError {
  return error instanceof KubeError && error.status === status;
}
