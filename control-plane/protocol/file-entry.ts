import { z } from "zod";
import { GatewayId } from "./ids.ts";
import { Bytes } from "./kv.ts";
import { Tokens } from "./tokens.ts";

/** What a file is called, and how long it is there. Kept once all of its body is, so that who finds it can read it. */
export const FileHead = z.object({
  filename: z.string(),
  purpose: z.enum(["batch", "batch_output"]),
  bytes: z.int().min(0),
  /** Unix seconds. */
  createdAt: z.int(),
  expiresAt: z.int(),
});
export type FileHead = z.infer<typeof FileHead>;

/** A piece of a file's body. The file is its pieces, in order. */
export const FilePart = z.object({
  /** Place among the pieces, from 0. */
  number: z.int().min(0),
  writer: GatewayId,
  bytes: Bytes,
  /** Bytes of the file up to here. */
  size: z.int().min(0),
  /** Of a batch's answers: the lines of its input that this piece answers, and how many were answered up to here. */
  lines: Tokens,
  answered: z.int().min(0),
});
export type FilePart = z.infer<typeof FilePart>;
