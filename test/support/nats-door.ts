import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** Passes connections on to a NATS server, each of them once it is admitted; one that is not hears nothing. */
export class NatsDoor implements AsyncDisposable {
  readonly #server = createServer((client) => void this.#accept(client));
  readonly #port: number;
  readonly #admit: (number: number) => Promise<boolean>;
  readonly #open: Socket[] = [];
  /** When each connection came, milliseconds. */
  readonly came: number[] = [];

  private constructor(url: string, admit: (number: number) => Promise<boolean>) {
    this.#port = Number(new URL(url).port);
    this.#admit = admit;
  }

  /** Before the server at `url`; connections are numbered from 1. */
  static async open(url: string, admit: (number: number) => Promise<boolean>): Promise<NatsDoor> {
    const door = new NatsDoor(url, admit);
    door.#server.listen(0, "127.0.0.1");
    await once(door.#server, "listening");
    return door;
  }

  get url(): string {
    return `nats://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Breaks every connection. */
  cut(): void {
    for (const socket of this.#open.splice(0)) socket.destroy();
  }

  async #accept(client: Socket): Promise<void> {
    client.on("error", () => {});
    this.#open.push(client);
    if (!(await this.#admit(this.came.push(performance.now())))) return;
    const server = connect(this.#port, "127.0.0.1");
    this.#open.push(server);
    for (const [one, other] of [
      [client, server],
      [server, client],
    ] as const) {
      one.pipe(other);
      one.on("error", () => other.destroy());
      one.once("close", () => other.destroy());
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    this.#server.close();
  }
}
