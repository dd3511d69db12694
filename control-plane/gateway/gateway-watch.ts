import type { Bus, Subscription } from "#protocol/bus/bus.ts";
import type { GatewayId } from "#protocol/ids.ts";
import { subjects } from "#protocol/subjects.ts";
import { GATEWAY_BEAT_MS, GatewayBeat } from "#protocol/worker.ts";
import type { Clock } from "#service/clock.ts";

/** A gateway that was silent for so long works on nothing any more. */
const SILENT_MS = 8 * GATEWAY_BEAT_MS;

/**
 * Knows when each gateway was last heard, so that another one goes on with what a silent one left behind, and who can be
 * asked.
 *
 *   made -> listening -> closed
 *
 * Silence counts only while this process could hear.
 */
export class GatewayWatch {
  readonly #bus: Bus;
  readonly #own: GatewayId;
  readonly #clock: Clock;
  readonly #heardMs = new Map<GatewayId, number>();
  #open: Subscription[] = [];
  #sinceMs = 0;

  constructor(bus: Bus, own: GatewayId, clock: Clock) {
    this.#bus = bus;
    this.#own = own;
    this.#clock = clock;
  }

  listen(): void {
    this.#sinceMs = this.#clock.monotonic();
    this.#open = [
      this.#bus.subscribe(subjects.gatewayBeats(), GatewayBeat, ({ gatewayId }) =>
        this.#heardMs.set(gatewayId, this.#clock.monotonic()),
      ),
      this.#bus.onState(() => {
        this.#sinceMs = this.#clock.monotonic();
      }),
    ];
  }

  close(): void {
    for (const one of this.#open) one.unsubscribe();
    this.#open = [];
  }

  /** The others that were heard lately, those heard last first. */
  get others(): readonly GatewayId[] {
    const fromMs = this.#clock.monotonic() - SILENT_MS;
    for (const [gateway, heardMs] of this.#heardMs) if (heardMs < fromMs) this.#heardMs.delete(gateway);
    const heard = [...this.#heardMs].filter(([gateway]) => gateway !== this.#own);
    return heard.sort(([, a], [, b]) => b - a).map(([gateway]) => gateway);
  }

  /** Whether nobody is at work under this id. This process itself knows what it works on, and does not ask. */
  isGone(gateway: GatewayId): boolean {
    if (gateway === this.#own) return true;
    return this.#clock.monotonic() - Math.max(this.#sinceMs, this.#heardMs.get(gateway) ?? 0) > SILENT_MS;
  }
}
