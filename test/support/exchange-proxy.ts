import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";

/** Bytes that open a connection in each direction, and of a frame's head (native/src/comm/wire.h). */
const GREETING_BYTES = 128;
const HEAD_BYTES = 56;
/** Where a greeting says that it is a refusal, and its cause. */
const GREETING_TYPE = 6;
const REFUSES = 3;
const GREETING_CAUSE = 24;
const GREETING_REFUSALS = ["malformed", "stale_epoch", "early_epoch", "unproven", "incompatible", "duplicate"] as const;
const ANSWER_MS = 10_000;
const FRAME_KINDS = ["begin", "dispatch", "combine", "waits", "left"] as const;
export type FrameKind = (typeof FRAME_KINDS)[number];

/** Where in a step the rank behind the proxy falls silent, as its peer sees it. */
export interface Fall {
  /**
   * dispatch: part of its rows have left; experts: it has the peer's rows, and nothing of its results has left; combine: part of
   * its results have left.
   */
  readonly phase: "dispatch" | "experts" | "combine";
  /** Frames of this kind that still pass. */
  readonly after: number;
  /** Called at that place. Nothing passes on this connection afterwards, until a new one is made. */
  readonly carryOut: (cut: () => void) => void;
}

export interface ExchangeProxy {
  arm(fall: Fall): void;
  readonly fallen: () => number;
  /** The greetings with which rank 1 opened its connections, oldest first. */
  readonly greetings: () => readonly Buffer[];
  close(): Promise<void>;
}

interface Direction {
  /** Bytes of the greeting, head or body that are still to come. */
  missing: number;
  reading: "greeting" | "head" | "body";
  head: Buffer;
}

/**
 * Stands before rank 0 of a worker of two, to which rank 1 connects: sees every frame between them. The one that falls is
 * rank 1.
 */
export async function startExchangeProxy(listenPort: number, targetPort: number): Promise<ExchangeProxy> {
  const open = new Set<Socket>();
  let armed: Fall | null = null;
  let fallen = 0;
  const greetings: Buffer[] = [];
  let server: Server | null = null;

  const relay = (from: Socket, to: Socket): void => {
    let stalled = false;
    const cut = (): void => {
      from.destroy();
      to.destroy();
    };
    const forth: Direction = { missing: GREETING_BYTES, reading: "greeting", head: Buffer.alloc(0) };
    let greeting: Buffer | null = Buffer.alloc(0);
    from.on("data", (bytes) => {
      if (stalled) return;
      if (greeting !== null) {
        greeting = Buffer.concat([greeting, bytes]).subarray(0, GREETING_BYTES);
        if (greeting.length === GREETING_BYTES) {
          greetings.push(greeting);
          greeting = null;
        }
      }
      const fall = armed;
      const at = fall === null ? null : placeOf(fall, forth, bytes);
      if (fall === null || at === null) {
        if (fall === null) follow(forth, bytes, () => false);
        to.write(bytes);
        return;
      }
      armed = null;
      stalled = true;
      fallen++;
      to.write(bytes.subarray(0, at));
      fall.carryOut(cut);
    });
    to.on("data", (bytes) => void (stalled || from.write(bytes)));
    for (const socket of [from, to]) {
      open.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => {
        open.delete(socket);
        cut();
      });
    }
  };

  server = createServer((from) => relay(from, connect(targetPort, "127.0.0.1")));
  server.listen(listenPort, "127.0.0.1");
  await once(server, "listening");
  return {
    arm(fall) {
      armed = { ...fall };
    },
    fallen: () => fallen,
    greetings: () => greetings,
    async close() {
      for (const socket of open) socket.destroy();
      server?.close();
      if (server !== null) await once(server, "close");
    },
  };

  /** Offset in `bytes` up to which they still pass; null: all of them. */
  function placeOf(fall: Fall, direction: Direction, bytes: Buffer): number | null {
    const wanted: FrameKind = fall.phase === "dispatch" ? "dispatch" : "combine";
    let place: number | null = null;
    let left = fall.after;
    follow(direction, bytes, (kind, start, end) => {
      if (kind !== wanted) return false;
      if (left-- > 0) return false;
      // Of a frame that is told in part, the head and half of what there is of the rest.
      place = fall.phase === "experts" ? start : Math.floor((start + HEAD_BYTES + end) / 2);
      return true;
    });
    armed = place === null ? { ...fall, after: left } : fall;
    return place;
  }
}

/** Follows frames through `bytes`; `onFrame` hears of each head, with the offsets at which it began and its frame ends at most. */
function follow(
  direction: Direction,
  bytes: Buffer,
  onFrame: (kind: FrameKind, start: number, end: number) => boolean,
): void {
  let at = 0;
  while (at < bytes.length) {
    const taken = Math.min(direction.missing, bytes.length - at);
    if (direction.reading === "head") direction.head = Buffer.concat([direction.head, bytes.subarray(at, at + taken)]);
    at += taken;
    direction.missing -= taken;
    if (direction.missing > 0) return;
    if (direction.reading !== "head") {
      Object.assign(direction, { reading: "head", missing: HEAD_BYTES, head: Buffer.alloc(0) });
      continue;
    }
    const kind = FRAME_KINDS[direction.head.readUInt16LE(4) - 1];
    const body = Number(direction.head.readBigUInt64LE(40));
    const start = Math.max(0, at - HEAD_BYTES);
    const stop = kind !== undefined && onFrame(kind, start, Math.min(bytes.length, at + body));
    if (body > 0) Object.assign(direction, { reading: "body", missing: body });
    else Object.assign(direction, { missing: HEAD_BYTES, head: Buffer.alloc(0) });
    if (stop) return;
  }
}

/** What whoever listens at `port` answers to a greeting: why it is refused, or null where it is not. */
export async function refusalOf(port: number, greeting: Buffer): Promise<string | null> {
  const socket = connect(port, "127.0.0.1");
  socket.setTimeout(ANSWER_MS, () => socket.destroy());
  socket.write(greeting);
  const answer: Buffer[] = [];
  for await (const bytes of socket) {
    answer.push(bytes as Buffer);
    if (Buffer.concat(answer).length >= GREETING_BYTES) break;
  }
  const told = Buffer.concat(answer);
  if (told.length < GREETING_BYTES || told.readUInt16LE(GREETING_TYPE) !== REFUSES) return null;
  return GREETING_REFUSALS[told.readUInt32LE(GREETING_CAUSE)] ?? null;
}

/** The first of `count` ports in a row that were free a moment ago. */
export async function freePorts(count: number): Promise<number> {
  for (;;) {
    const servers: Server[] = [];
    try {
      let first = 0;
      for (let i = 0; i < count; i++) {
        const server = createServer();
        server.listen(first === 0 ? 0 : first + i, "127.0.0.1");
        await once(server, "listening");
        servers.push(server);
        const address = server.address();
        if (first === 0 && typeof address === "object" && address !== null) first = address.port;
      }
      return first;
    } catch {
      // One of them was taken.
    } finally {
      await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
    }
  }
}
