/**
 * Money in integers. A price is micro-units of the currency per million tokens, so tokens times price is exact in
 * pico-units (1e-12), and sums of those lose nothing. They are bigints: 2^53 pico-units are only 9,007 units.
 */
export type Picos = bigint;

export const PICOS_PER_MICRO = 1_000_000n;
const PICOS_PER_UNIT = 1_000_000_000_000n;
const MICRO_DIGITS = 6;
const PICO_DIGITS = 12;

/** An amount as people write it: digits, and at most six decimal places. */
export const DECIMAL = /^\d{1,9}(\.\d{1,6})?$/;

/** `"2.80"` as 2,800,000 micro-units. The text matches `DECIMAL`. */
export function microsOf(decimal: string): number {
  const [units = "", fraction = ""] = decimal.split(".");
  return Number(units + fraction.padEnd(MICRO_DIGITS, "0"));
}

/** Exact, as a decimal with twelve places. */
export function decimalOf(picos: Picos): string {
  const fraction = (picos % PICOS_PER_UNIT).toString().padStart(PICO_DIGITS, "0");
  return `${picos / PICOS_PER_UNIT}.${fraction}`;
}

/** To the nearest micro-unit; half of one goes up. */
export function roundedMicros(picos: Picos): number {
  return Number((picos + PICOS_PER_MICRO / 2n) / PICOS_PER_MICRO);
}
