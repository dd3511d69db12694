import { request } from "node:http";
import { connect } from "node:net";
import type { RunningContainer } from "./container.ts";
import type { Container, Handler } from "./objects.ts";

/** One try of a probe or a hook. Resolves with whether it succeeded. */
export function tryHandler(
  handler: Handler,
  container: Container,
  running: RunningContainer,
  podIp: string,
  timeoutMs: number,
): Promise<boolean> {
  const port = (name: number | string): number =>
    typeof name === "number" ? name : (container.ports?.find((one) => one.name === name)?.containerPort ?? 0);
  const { exec, httpGet, tcpSocket, sleep } = handler;
  if (exec !== undefined) return running.exec(exec.command, timeoutMs);
  if (httpGet !== undefined) return get(podIp, port(httpGet.port), httpGet.path ?? "/", timeoutMs);
  if (tcpSocket !== undefined) return reach(podIp, port(tcpSocket.port), timeoutMs);
  return new Promise((resolve) => setTimeout(() => resolve(true), (sleep?.seconds ?? 0) * 1000));
}

function get(host: string, port: number, path: string, timeout: number): Promise<boolean> {
  return new Promise((resolve) => {
    const asked = request({ host, port, path, timeout, agent: false }, (response) => {
      response.resume();
      resolve((response.statusCode ?? 0) >= 200 && (response.statusCode ?? 0) < 400);
    });
    asked.once("error", () => resolve(false));
    asked.once("timeout", () => asked.destroy(new Error("too late")));
    asked.end();
  });
}

function reach(host: string, port: number, timeout: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host, port, timeout });
    const end = (reached: boolean): void => {
      socket.destroy();
      resolve(reached);
    };
    socket.once("connect", () => end(true));
    socket.once("error", () => end(false));
    socket.once("timeout", () => end(false));
  });
}
