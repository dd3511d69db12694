import { z } from "zod";

/** Token ids of the model's vocabulary, in order. Travels binary. */
export const Tokens = z.custom<Int32Array>((value) => value instanceof Int32Array, "must be an Int32Array");
