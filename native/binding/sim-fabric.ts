import type { SequenceHandle } from "#protocol/kv.ts";
import type { FrameRefusal } from "./native.ts";
import { SimGroups } from "./sim-group.ts";

/** One block of one sequence on its way from a simulated prefill rank to a simulated decode rank. */
export interface SimPage {
  readonly from: string;
  readonly handle: SequenceHandle;
  readonly epoch: number;
  readonly modelHash: string;
  /** Logical block, and its rows as the sender had them. */
  readonly index: number;
  readonly rows: Int32Array;
}

/** What becomes of a page on its way. A number: it is held up for so many milliseconds; a `FrameRefusal`: it arrives damaged. */
export type SimFate = "deliver" | "lose" | "twice" | number | FrameRefusal;

/** What a receiver says to a page. */
export type SimAnswer = "ok" | "duplicate" | FrameRefusal;

/** Where pages arrive. */
export interface SimPort {
  accept(page: SimPage): SimAnswer;
  refuse(cause: FrameRefusal): void;
}

/**
 * The network between the simulated engines of one process: finds the receiver of an address and counts what passes.
 * `fault` may lose a page, hold it up, bring it twice or have it refused.
 */
export class SimFabric {
  pages = 0;
  readonly groups = new SimGroups();
  fault: (page: SimPage, port: number) => SimFate = () => "deliver";
  readonly #receivers = new Map<string, SimPort>();
  #nextPort = 40_000;

  /** A port that nobody has. */
  anyPort(): number {
    return this.#nextPort++;
  }

  /** Returns the port taken. */
  listen(host: string, port: number, receiver: SimPort): number {
    const taken = port === 0 ? this.anyPort() : port;
    this.#receivers.set(`${host}:${taken}`, receiver);
    return taken;
  }

  /** Somebody else may have taken the address since. */
  leave(host: string, port: number, receiver: SimPort): void {
    if (this.#receivers.get(`${host}:${port}`) === receiver) this.#receivers.delete(`${host}:${port}`);
  }

  /** `lost` gets no answer, a number is to be tried again after so many milliseconds, `unreachable` is known at once. */
  carry(host: string, port: number, page: SimPage): SimAnswer | "lost" | number | "unreachable" {
    const receiver = this.#receivers.get(`${host}:${port}`);
    if (receiver === undefined) return "unreachable";
    const fate = this.fault(page, port);
    if (fate === "lose") return "lost";
    if (typeof fate === "number") return fate;
    if (fate === "twice") receiver.accept(page);
    else if (fate !== "deliver") {
      receiver.refuse(fate);
      return fate;
    }
    const answer = receiver.accept(page);
    if (answer === "ok" || fate === "twice") this.pages++;
    return answer;
  }
}
