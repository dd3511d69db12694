import { connect, createServer, type Server } from "node:net";

/**
 * A door out of the cluster's network: who connects to the socket file and sends one line "HOST PORT" is connected to
 * that address as if it were inside.
 */
export function openGate(path: string): Promise<Server> {
  const server = createServer((outside) => {
    let head = Buffer.alloc(0);
    const onData = (bytes: Buffer): void => {
      head = Buffer.concat([head, bytes]);
      const end = head.indexOf(10);
      if (end === -1) return;
      outside.off("data", onData);
      outside.pause();
      const [host, port] = head.subarray(0, end).toString().split(" ");
      const inside = connect(Number(port), host);
      inside.once("connect", () => {
        inside.write(head.subarray(end + 1));
        inside.pipe(outside);
        outside.pipe(inside);
      });
      for (const [one, other] of [
        [inside, outside],
        [outside, inside],
      ] as const) {
        one.on("error", () => other.destroy());
        one.once("close", () => other.destroy());
      }
    };
    outside.on("error", () => {});
    outside.on("data", onData);
  });
  return new Promise((resolve) => server.listen(path, () => resolve(server)));
}
