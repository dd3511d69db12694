import { beforeEach, expect, test } from "vitest";
import type { DecodeDone, TokenBatch } from "#protocol/decode.ts";
import { GatewayId, RankId, RequestId } from "#protocol/ids.ts";
import type { RequestHead } from "#protocol/request.ts";
import { GATHER_MS, TokenStream } from "../../decode-node/token-stream.ts";
import { FakeClock } from "../support/fake-clock.ts";

const finished: DecodeDone = {
  finish: "stop",
  error: null,
  cachedTokens: 0,
  computedTokens: 0,
  verifiedDrafts: 0,
  acceptedDrafts: 0,
  decodeMs: 1,
  gpuMs: 1,
};
const failed: DecodeDone = { ...finished, finish: null, error: "numeric" };

let clock: FakeClock;
let sent: { readonly owner: string; readonly batch: TokenBatch }[];
let stream: TokenStream;

beforeEach(() => {
  clock = new FakeClock();
  sent = [];
  stream = new TokenStream(RankId.parse("d-r0"), 3, clock, (owner, batch) => void sent.push({ owner, batch }));
});

function head(requestId: string, attempt = 0, owner = "gw1"): RequestHead {
  return { requestId: RequestId.parse(requestId), attempt, owner: GatewayId.parse(owner) };
}

function ack(who: RequestHead, seq: number): void {
  stream.acknowledge({ kind: "token-acks", acks: [{ requestId: who.requestId, attempt: who.attempt, seq }] });
}

function resumed(who: RequestHead, seq: number) {
  const reply = stream.resume({ kind: "resume-stream", head: who, seq });
  return reply.kind === "resumed" ? { tokens: [...reply.chunk.tokens], done: reply.chunk.done } : reply.code;
}

test("nothing leaves before flush, and nothing leaves twice", () => {
  const a = head("a");
  stream.open(a, 5, -1);
  stream.emit(a, 10, null);
  expect(sent).toEqual([]);
  stream.flush();
  stream.flush();
  stream.emit(a, 11, null);
  stream.end(a, finished);
  stream.flush();
  expect(sent.map(({ batch }) => batch.chunks.map((chunk) => [chunk.seq, [...chunk.tokens], chunk.done]))).toEqual([
    [[5, [10], null]],
    [[6, [11], finished]],
  ]);
  expect(sent[0]!.batch).toMatchObject({ rankId: "d-r0", epoch: 3 });
});

test("steps that follow each other fast share a message; first tokens and ends do not wait", async () => {
  const [a, b] = [head("a"), head("b")];
  const step = async (ms: number, ...made: (() => void)[]) => {
    for (const make of made) make();
    stream.stepped();
    await clock.advance(ms);
  };
  const told = () => sent.splice(0).map(({ batch }) => batch.chunks.map((c) => [c.requestId, c.seq, [...c.tokens]]));
  stream.open(a, 0, -1);
  await step(1, () => stream.emit(a, 10, null));
  expect(told()).toEqual([[["a", 0, [10]]]]);
  await step(1, () => stream.emit(a, 11, null));
  await step(1, () => stream.emit(a, 12, null));
  expect(told()).toEqual([]);
  await clock.advance(GATHER_MS - 3);
  expect(told()).toEqual([[["a", 1, [11, 12]]]]);
  await step(1, () => stream.emit(a, 13, null));
  stream.open(b, 5, -1);
  await step(
    1,
    () => stream.emit(a, 14, null),
    () => stream.emit(b, 20, null),
  );
  expect(told()).toEqual([
    [
      ["a", 3, [13, 14]],
      ["b", 5, [20]],
    ],
  ]);
  await step(0, () => stream.end(b, finished));
  expect(told()).toEqual([[["b", 6, []]]]);
  await clock.advance(2 * GATHER_MS);
  await step(0, () => stream.emit(a, 15, null));
  expect(told()).toEqual([[["a", 5, [15]]]]);
});

test("an end by error is kept although every token is acknowledged, for its message may be lost", async () => {
  const a = head("a");
  stream.open(a, 0, -1);
  stream.emit(a, 10, null);
  stream.flush();
  stream.end(a, failed);
  stream.flush();
  ack(a, 1);
  expect(resumed(a, 1)).toEqual({ tokens: [], done: failed });
  await clock.advance(30_001);
  expect(stream.size).toBe(0);
  expect(clock.pending).toBe(0);
});

test("acknowledgements of unsent tokens, other attempts and strangers change nothing", () => {
  const a = head("a", 1);
  stream.open(a, 0, -1);
  stream.emit(a, 10, null);
  stream.flush();
  stream.emit(a, 11, null);
  ack(a, 50);
  ack(head("a", 0), 2);
  ack(head("b"), 1);
  expect(resumed(a, 1)).toEqual({ tokens: [11], done: null });
  expect(resumed(a, 0)).toEqual({ tokens: [11], done: null });
});

test("a question beyond the last token is answered with nothing", () => {
  const a = head("a");
  stream.open(a, 0, -1);
  expect(resumed(a, 7)).toEqual({ tokens: [], done: null });
});

test("a dropped stream leaves nothing to publish, not even an empty message", () => {
  const a = head("a");
  stream.open(a, 0, -1);
  stream.emit(a, 10, null);
  stream.drop(a);
  stream.flush();
  expect(sent).toEqual([]);
});

test("tails are bounded: the oldest give way, running streams never do", () => {
  const running = head("running");
  stream.open(running, 0, -1);
  for (let i = 0; i < 4_200; i++) {
    const ended = head(`r${i}`);
    stream.open(ended, 0, -1);
    stream.end(ended, finished);
  }
  expect(stream.size).toBe(4_097);
  expect(resumed(running, 0)).toEqual({ tokens: [], done: null });
  expect(resumed(head("r0"), 0)).toBe("unknown_request");
  expect(resumed(head("r4199"), 0)).toMatchObject({ done: finished });
  stream.close();
  expect(clock.pending).toBe(0);
});
