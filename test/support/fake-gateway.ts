import { z } from "zod";
import type { Bus } from "#protocol/bus/bus.ts";
import {
  type DecodeDone,
  ReserveKv,
  ReserveReply,
  ResumeReply,
  ResumeStream,
  StartDecode,
  StartReply,
  TokenAcks,
  TokenBatch,
} from "#protocol/decode.ts";
import { GatewayId, type RankId, RequestId } from "#protocol/ids.ts";
import { KvEvents, KvMissed, KvMissedReply, type Reservation } from "#protocol/kv.ts";
import {
  Cancel,
  CancelReply,
  DrainReply,
  PrefillDone,
  PrefillFailed,
  PrefillReply,
  PrefillTarget,
  PrefillWork,
  TargetReply,
} from "#protocol/prefill.ts";
import type { Generation, RequestHead } from "#protocol/request.ts";
import { subjects } from "#protocol/subjects.ts";
import { Drain, GATEWAY_BEAT_MS, GatewayBeat, Goodbye, Heartbeat, Hello, Refused, Welcome } from "#protocol/worker.ts";
import type { Clock, Timer } from "#service/clock.ts";

const Outcome = z.discriminatedUnion("kind", [PrefillDone, PrefillFailed]);
const Beat = z.discriminatedUnion("kind", [Heartbeat, Goodbye]);

/** What arrived of one request. */
export interface HeardStream {
  readonly tokens: number[];
  /** `seq` of every chunk as it came. */
  readonly seqs: number[];
  done: DecodeDone | null;
}

/** A control plane as ranks see it: gives epochs, beats, sends what the test says and writes down what it hears. */
export class FakeGateway {
  readonly id: GatewayId;
  readonly bus: Bus;
  readonly batches: TokenBatch[] = [];
  readonly outcomes: z.infer<typeof Outcome>[] = [];
  readonly beats: z.infer<typeof Beat>[] = [];
  readonly kvEvents: KvEvents[] = [];
  readonly #clock: Clock;
  readonly #streams = new Map<string, HeardStream>();
  readonly #beating: Timer;
  #requests = 0;

  constructor(bus: Bus, clock: Clock, id = "gw1") {
    this.bus = bus;
    this.#clock = clock;
    this.id = GatewayId.parse(id);
    bus.respond(subjects.hello(), Hello, z.discriminatedUnion("kind", [Welcome, Refused]), async ({ rankId }) => ({
      kind: "welcome" as const,
      epoch: await bus.nextEpoch(rankId),
      gatewayId: this.id,
    }));
    bus.subscribe(subjects.tokens(this.id), TokenBatch, (batch) => {
      this.batches.push(batch);
      for (const { requestId, seq, tokens, done } of batch.chunks) {
        const stream = this.stream(requestId);
        stream.seqs.push(seq);
        stream.tokens.push(...tokens);
        stream.done = done ?? stream.done;
      }
    });
    bus.subscribe(subjects.prefillOutcome(this.id), Outcome, (outcome) => void this.outcomes.push(outcome));
    bus.subscribe(subjects.beats(), Beat, (beat) => void this.beats.push(beat));
    bus.subscribe(subjects.allKvEvents(), KvEvents, (events) => void this.kvEvents.push(events));
    const beat = () =>
      bus.publish(subjects.gatewayBeat(this.id), GatewayBeat, {
        kind: "gateway-beat",
        gatewayId: this.id,
        clockMs: clock.now(),
      });
    this.#beating = clock.every(GATEWAY_BEAT_MS, beat);
  }

  /** Beats no more. */
  die(): void {
    this.#beating.cancel();
  }

  head(attempt = 0, requestId = `req${++this.#requests}`): RequestHead {
    return { requestId: RequestId.parse(requestId), attempt, owner: this.id };
  }

  stream(requestId: string): HeardStream {
    let stream = this.#streams.get(requestId);
    if (stream === undefined) {
      stream = { tokens: [], seqs: [], done: null };
      this.#streams.set(requestId, stream);
    }
    return stream;
  }

  outcomesOf(head: RequestHead): readonly z.infer<typeof Outcome>[] {
    return this.outcomes.filter(
      (outcome) => outcome.head.requestId === head.requestId && outcome.head.attempt === head.attempt,
    );
  }

  reserve(
    rank: RankId,
    epoch: number,
    head: RequestHead,
    generation: Generation,
    deadlineMs = this.#clock.now() + 10_000,
  ): Promise<ReserveReply> {
    const message = { kind: "reserve-kv", head, generation, epoch, deadlineMs } as const;
    return this.bus.request(subjects.reserve(rank), ReserveKv, message, ReserveReply, 2_000);
  }

  prefill(
    rank: RankId,
    epoch: number,
    head: RequestHead,
    generation: Generation,
    reservation: Reservation | null,
    deadlineMs = this.#clock.now() + 10_000,
  ): Promise<PrefillReply> {
    const message = { kind: "prefill-work", head, generation, reservation, epoch, deadlineMs } as const;
    return this.bus.request(subjects.prefill(rank), PrefillWork, message, PrefillReply, 2_000);
  }

  target(rank: RankId, epoch: number, head: RequestHead, reservation: Reservation): Promise<TargetReply> {
    const message = { kind: "prefill-target", head, reservation, epoch } as const;
    return this.bus.request(subjects.target(rank), PrefillTarget, message, TargetReply, 2_000);
  }

  start(
    reservation: Reservation,
    head: RequestHead,
    firstToken: number | null,
    transferDeadlineMs = this.#clock.now() + 5_000,
    pages = firstToken !== null,
  ): Promise<StartReply> {
    const { rankId, epoch, handle } = reservation;
    const message = { kind: "start-decode", head, handle, epoch, pages, firstToken, transferDeadlineMs } as const;
    return this.bus.request(subjects.start(rankId), StartDecode, message, StartReply, 60_000);
  }

  cancel(rank: RankId, head: RequestHead): Promise<CancelReply> {
    return this.bus.request(subjects.cancel(rank), Cancel, { kind: "cancel", head }, CancelReply, 10_000);
  }

  resume(rank: RankId, head: RequestHead, seq: number): Promise<ResumeReply> {
    const message = { kind: "resume-stream", head, seq } as const;
    return this.bus.request(subjects.resume(rank), ResumeStream, message, ResumeReply, 2_000);
  }

  acknowledge(rank: RankId, head: RequestHead, seq: number): void {
    const { requestId, attempt } = head;
    this.bus.publish(subjects.acks(rank), TokenAcks, { kind: "token-acks", acks: [{ requestId, attempt, seq }] });
  }

  drain(rank: RankId, deadlineMs: number): Promise<DrainReply> {
    return this.bus.request(subjects.drain(rank), Drain, { kind: "drain", deadlineMs }, DrainReply, 2_000);
  }

  /** What the rank told since event `seq` of `epoch`. */
  missed(rank: RankId, epoch: number, seq = -1): Promise<KvMissedReply> {
    const missed = { kind: "kv-missed", epoch, seq } as const;
    return this.bus.request(subjects.kvMissed(rank), KvMissed, missed, KvMissedReply, 2_000);
  }
}
