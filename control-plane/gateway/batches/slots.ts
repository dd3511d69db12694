/** So many pieces of work at a time. */
export class Slots {
  readonly #most: number;
  readonly #waiting: (() => void)[] = [];
  #taken = 0;

  constructor(most: number) {
    this.#most = most;
  }

  /** Waits for a free one, in turn. */
  async take(): Promise<void> {
    if (this.#taken < this.#most) this.#taken++;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  give(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#taken--;
    else next();
  }

  /** Waits until all are free. Nobody takes one meanwhile. */
  async allFree(): Promise<void> {
    for (let i = 0; i < this.#most; i++) await this.take();
    this.#taken = 0;
  }
}
