import { setImmediate as turn } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { expect, test } from "vitest";
import { MargayError } from "#protocol/errors.ts";
import { Interruption } from "../../control-plane/flow/interruption.ts";

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

test("what was waited for is let go while the interruption lives on", async () => {
  const interruption = new Interruption();
  const waited = async () => new WeakRef(await interruption.race(Promise.resolve({})));
  const known = await waited();
  await turn();
  collect();
  expect(known.deref()).toBeUndefined();
  expect(interruption.error).toBeNull();
});

test("a reason ends every wait, and those that begin after it", async () => {
  const interruption = new Interruption();
  const never = new Promise<never>(() => {});
  const before = [interruption.race(never), interruption.race(never)];
  interruption.raise(new MargayError("cancelled", "the first"));
  interruption.raise(new MargayError("timeout", "the second"));
  for (const wait of [...before, interruption.race(never)]) await expect(wait).rejects.toThrow("the first");
});

test("what was over before the reason came is told, and what fails later is nobody's", async () => {
  const interruption = new Interruption();
  const over = interruption.race(Promise.resolve("over"));
  const late = Promise.withResolvers<never>();
  const cut = interruption.race(late.promise);
  interruption.raise(new MargayError("cancelled"));
  late.reject(new Error("later"));
  await expect(over).resolves.toBe("over");
  await expect(cut).rejects.toThrow(MargayError);
});
