import type { GatewayId } from "#protocol/ids.ts";

/**
 * Which owners of requests (control-plane processes) are alive, as far as this rank can know. Pure: time is an argument.
 *
 *   unknown -> alive -> silent -> forgotten
 *
 * 1 silence counts only while this rank could hear: neither an outage of the bus nor a pause of this process kills
 * 2 an owner never heard of is alive from the moment it is first asked about
 * 3 a silent owner is reported once and forgotten, so the table stays as small as the number of living owners
 */
export class OwnerWatch {
  readonly #timeoutMs: number;
  readonly #pauseMs: number;
  readonly #lastBeat = new Map<GatewayId, number>();
  #lastCheckMs: number;
  #hearing = true;

  /** `timeoutMs`: silence that means death. `pauseMs`: a gap between checks that means this process stood still. */
  constructor(timeoutMs: number, pauseMs: number, nowMs: number) {
    this.#timeoutMs = timeoutMs;
    this.#pauseMs = pauseMs;
    this.#lastCheckMs = nowMs;
  }

  beat(owner: GatewayId, nowMs: number): void {
    this.#lastBeat.set(owner, nowMs);
  }

  /** The bus was lost or came back. */
  setHearing(hearing: boolean, nowMs: number): void {
    if (hearing && !this.#hearing) this.#forgive(nowMs);
    this.#hearing = hearing;
  }

  isAlive(owner: GatewayId, nowMs: number): boolean {
    const last = this.#lastBeat.get(owner);
    if (last === undefined) {
      this.#lastBeat.set(owner, nowMs);
      return true;
    }
    return !this.#hearing || nowMs - last <= this.#timeoutMs;
  }

  /** Owners silent for longer than the time-out, each once. To be called every now and then. */
  takeSilent(nowMs: number): GatewayId[] {
    if (nowMs - this.#lastCheckMs > this.#pauseMs) this.#forgive(nowMs);
    this.#lastCheckMs = nowMs;
    if (!this.#hearing) return [];
    const silent = [...this.#lastBeat].filter(([, last]) => nowMs - last > this.#timeoutMs).map(([owner]) => owner);
    for (const owner of silent) this.#lastBeat.delete(owner);
    return silent;
  }

  #forgive(nowMs: number): void {
    for (const owner of this.#lastBeat.keys()) this.#lastBeat.set(owner, nowMs);
  }
}
