import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

/** What the proxy does to the bytes that flow from the prefill side to the decode side, one connection at a time. */
export type Fault =
  | { readonly kind: "none" }
  /** Inverts one bit of byte `at` of the connection's stream, once. */
  | { readonly kind: "flip"; readonly at: number }
  /** Closes both sides after `at` bytes, once. */
  | { readonly kind: "cut"; readonly at: number };

export interface KvProxy {
  readonly port: number;
  /** The next connection's fault; afterwards connections are clean again. */
  arm(fault: Fault): void;
  /** How many faults were carried out. */
  readonly carriedOut: () => number;
  /** Ends open connections, so that the next transfer opens a new one. */
  reset(): void;
  /** Everything the last connection sent towards the decode side. */
  recorded(): Buffer;
  close(): Promise<void>;
}

/** Stands between a prefill and a decode rank on the KV connection. */
export async function startKvProxy(target: { readonly port: number }): Promise<KvProxy> {
  let armed: Fault = { kind: "none" };
  let done = 0;
  let record: Buffer[] = [];
  const open = new Set<Socket>();

  const server: Server = createServer((fromPrefill) => {
    const fault = armed;
    armed = { kind: "none" };
    record = [];
    let seen = 0;
    let faulted = false;
    const toDecode = connect(target.port, "127.0.0.1");
    for (const socket of [fromPrefill, toDecode]) {
      open.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => {
        open.delete(socket);
        fromPrefill.destroy();
        toDecode.destroy();
      });
    }
    toDecode.on("data", (bytes) => fromPrefill.write(bytes));
    fromPrefill.on("data", (bytes) => {
      const hits = !faulted && fault.kind !== "none" && fault.at >= seen && fault.at < seen + bytes.length;
      if (hits && fault.kind === "flip") {
        bytes[fault.at - seen]! ^= 0x10;
        faulted = true;
        done++;
      }
      record.push(Buffer.from(bytes));
      if (hits && fault.kind === "cut") {
        faulted = true;
        done++;
        toDecode.write(bytes.subarray(0, fault.at - seen), () => toDecode.destroy());
        fromPrefill.destroy();
        return;
      }
      seen += bytes.length;
      toDecode.write(bytes);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    arm(fault) {
      armed = fault;
    },
    carriedOut: () => done,
    reset() {
      for (const socket of open) socket.destroy();
    },
    recorded: () => Buffer.concat(record),
    async close() {
      for (const socket of open) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}

/** A port that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
