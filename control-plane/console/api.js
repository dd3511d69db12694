const KEY = "margay.key";

/** An answer that says no, in the server's own words. */
export class ApiError extends Error {
  /** @param {number} status @param {{message?: string, code?: string, param?: string} | null} fault @param {string | null} requestId */
  constructor(status, fault, requestId) {
    super(fault?.message ?? `The server answered with status ${status}.`);
    this.status = status;
    this.code = fault?.code ?? null;
    this.param = fault?.param ?? null;
    this.requestId = requestId;
  }
}

/** The key of this tab; empty: none. It is kept nowhere else. */
export function apiKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** @param {string} key empty: forget it */
export function keepApiKey(key) {
  if (key === "") sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, key);
}

/**
 * Asks the server. Throws `ApiError`, or what `fetch` throws where there is no answer; a refused key is told to the page.
 *
 * @param {string} path
 * @param {{body?: object, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 */
export async function ask(path, { body, signal } = {}) {
  const key = apiKey();
  const headers = {
    ...(key === "" ? {} : { authorization: `Bearer ${key}` }),
    ...(body === undefined ? {} : { "content-type": "application/json" }),
  };
  const answer = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers,
    signal,
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  if (answer.ok) return answer;
  const fault = await answer.json().then(
    ({ error }) => error,
    () => null,
  );
  const error = new ApiError(answer.status, fault, answer.headers.get("x-request-id"));
  if (answer.status === 401) window.dispatchEvent(new CustomEvent("margay-key-wanted", { detail: error.message }));
  throw error;
}

/** @param {string} path @param {AbortSignal} [signal] @returns {Promise<any>} */
export async function askJson(path, signal) {
  return (await ask(path, { signal })).json();
}

/** A failure in one sentence, for people. */
export function sentenceOf(error) {
  if (error instanceof ApiError) return error.message;
  if (error instanceof TypeError) return "The server cannot be reached.";
  return String(error?.message ?? error);
}
