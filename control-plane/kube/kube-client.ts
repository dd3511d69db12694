import { existsSync } from "node:fs";
import { type ClientRequest, request as httpRequest, type IncomingMessage } from "node:http";
import { request as httpsRequest, type RequestOptions } from "node:https";
import { KubeConfig } from "@kubernetes/client-node";
import type { Clock } from "#service/clock.ts";
import { type KubeApi, type KubeCall, KubeError, refusal } from "./kube-api.ts";

/** One call, from the first byte sent to the last one read. */
const CALL_MS = 10_000;
/** The server ends a watch itself after this long; one that is silent for longer than the slack beyond it is broken. */
const WATCH_SECONDS = 240;
const SILENT_MS = (WATCH_SECONDS + 30) * 1000;
const ACCOUNT_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/** What the library falls back to where nothing is configured. */
const NOBODY = "http://localhost:8080";
const MOST_ANSWER_BYTES = 64 * 1024 * 1024;

/**
 * The API server over HTTPS. Address, certificates and credentials, service-account tokens that are renewed on disk
 * included, are the library's business; this adds deadlines and bounds.
 *
 * `kubeconfig`: the text of a kubeconfig; null: the pod's service account, or what `kubectl` would use outside a pod.
 * Throws one sentence where no cluster is configured.
 */
export function connectKube(
  kubeconfig: string | null,
  clock: Clock,
): { readonly api: KubeApi /** Of the service account, or of the context. */; readonly namespace: string } {
  const config = new KubeConfig();
  if (kubeconfig !== null) config.loadFromString(kubeconfig);
  else if (existsSync(ACCOUNT_TOKEN)) config.loadFromCluster();
  else config.loadFromDefault();
  const server = config.getCurrentCluster()?.server;
  if (server === undefined || server === NOBODY) {
    throw new Error("There is no Kubernetes cluster: no service account is mounted here and no kubeconfig is found.");
  }

  /** Sends one request; `deadlineMs` null: none, for a watch. Resolves with the answer's head. */
  const send = async (call: KubeCall, deadlineMs: number | null, signal?: AbortSignal): Promise<IncomingMessage> => {
    const url = new URL(server.replace(/\/$/, "") + call.path);
    for (const [key, value] of Object.entries(call.query ?? {})) url.searchParams.set(key, value);
    const options: RequestOptions = { method: call.method, headers: { accept: "application/json" } };
    await config.applyToHTTPSOptions(options);
    const body = call.body === undefined ? null : JSON.stringify(call.body);
    if (body !== null) {
      const type = { "content-type": call.bodyType ?? "application/json", "content-length": Buffer.byteLength(body) };
      options.headers = { ...options.headers, ...type };
    }
    return new Promise((resolve, reject) => {
      const fail = (error: Error): void => reject(unreachable(call, error));
      const make = url.protocol === "http:" ? httpRequest : httpsRequest;
      const request: ClientRequest = make(url, { ...options, ...(signal === undefined ? {} : { signal }) });
      if (deadlineMs !== null) {
        const timer = clock.after(deadlineMs, () => request.destroy(new Error(`no answer within ${deadlineMs} ms`)));
        request.once("close", () => timer.cancel());
      }
      request.once("error", fail);
      request.once("response", resolve);
      request.end(body ?? undefined);
    });
  };

  const api: KubeApi = {
    async call(call) {
      const response = await send(call, CALL_MS);
      const text = await readAll(call, response);
      const status = response.statusCode ?? 0;
      if (status < 200 || status > 299) throw refusal(call, status, text);
      try {
        return JSON.parse(text);
      } catch (cause) {
        throw new KubeError(`${call.method} ${call.path}: the answer is not JSON`, null, { cause });
      }
    },

    async watch(path, query, onEvent, signal) {
      const call: KubeCall = {
        method: "GET",
        path,
        query: { ...query, watch: "true", allowWatchBookmarks: "true", timeoutSeconds: String(WATCH_SECONDS) },
      };
      const opened = Promise.withResolvers<never>();
      const timer = clock.after(CALL_MS, () => opened.reject(unreachable(call, new Error("the watch did not open"))));
      const ended = new AbortController();
      const both = AbortSignal.any([signal, ended.signal]);
      try {
        const response = await Promise.race([send(call, null, both), opened.promise]);
        timer.cancel();
        if (response.statusCode !== 200) {
          throw refusal(call, response.statusCode ?? 0, await readAll(call, response));
        }
        await readLines(call, response, clock, onEvent);
      } finally {
        timer.cancel();
        ended.abort();
      }
    },
  };
  return { api, namespace: config.getContextObject(config.getCurrentContext())?.namespace ?? "default" };
}

function unreachable(call: KubeCall, cause: Error): KubeError {
  return new KubeError(`${call.method} ${call.path}: ${cause.message}`, null, { cause });
}

async function readAll(call: KubeCall, response: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const part of response as AsyncIterable<Buffer>) {
      bytes += part.length;
      if (bytes > MOST_ANSWER_BYTES) throw new Error(`the answer has more than ${MOST_ANSWER_BYTES} bytes`);
      parts.push(part);
    }
  } catch (error) {
    throw unreachable(call, error as Error);
  }
  return Buffer.concat(parts).toString("utf8");
}

/** Resolves at the end of the stream; rejects when it breaks or is silent for too long. */
function readLines(
  call: KubeCall,
  response: IncomingMessage,
  clock: Clock,
  onEvent: (event: unknown) => void,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const silence = () => clock.after(SILENT_MS, () => response.destroy(new Error("the watch fell silent")));
    let timer = silence();
    const end = (error?: Error): void => {
      timer.cancel();
      if (error === undefined) resolve();
      else reject(unreachable(call, error));
    };
    response.once("error", end);
    response.once("end", () => end());
    // A connection that was cut in the middle has no end.
    response.once("close", () => end(response.complete ? undefined : new Error("the connection was cut")));
    let rest = "";
    response.setEncoding("utf8").on("data", (part: string) => {
      timer.cancel();
      timer = silence();
      const lines = (rest + part).split("\n");
      rest = lines.pop()!;
      try {
        for (const line of lines) onEvent(JSON.parse(line));
      } catch (error) {
        response.destroy(error as Error);
      }
    });
  });
}
