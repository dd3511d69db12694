import { z } from "zod";
import { must, wholeWithin } from "../must.ts";

export const LEAST_LIFE_S = 3_600;
export const MOST_LIFE_S = 2_592_000;
/** Longest name of a file. */
const MAX_NAME = 255;

export const purposeRule = must('be "batch": files for anything else are not supported');

/** When a file goes by itself. */
export const ExpiresAfter = z.object(
  {
    anchor: z.literal("created_at", must('be "created_at"')),
    seconds: wholeWithin(LEAST_LIFE_S, MOST_LIFE_S),
  },
  must("be an object with anchor and seconds"),
);

/** The fields of `POST /v1/files` beside the file, as a form spells them. */
export const UploadFields = z.object({
  purpose: z.literal("batch", purposeRule),
  filename: z
    .string()
    .min(1, must("have a name"))
    .max(MAX_NAME, must(`have a name of at most ${MAX_NAME} characters`)),
  "expires_after[anchor]": ExpiresAfter.shape.anchor.optional(),
  "expires_after[seconds]": z
    .string()
    .regex(/^\d{1,15}$/, must(`be a whole number from ${LEAST_LIFE_S} to ${MOST_LIFE_S}`))
    .transform(Number)
    .pipe(ExpiresAfter.shape.seconds)
    .optional(),
});

/** The same as the document tells it. */
export const UploadForm = z.object({
  file: z.file().meta({ description: "JSON Lines: a request a line." }),
  purpose: UploadFields.shape.purpose,
  "expires_after[anchor]": UploadFields.shape["expires_after[anchor]"],
  "expires_after[seconds]": UploadFields.shape["expires_after[seconds]"].meta({
    description: "Never longer than the server keeps files.",
  }),
});

/** The query of a list, page by page. */
export function pageQuery(most: number, usual: number) {
  const rule = must(`be a whole number from 1 to ${most}`);
  return {
    after: z.string(must("be an id of the list")).optional(),
    limit: z
      .string(rule)
      .regex(/^\d{1,6}$/, rule)
      .transform(Number)
      .pipe(wholeWithin(1, most))
      .default(usual)
      .optional(),
  };
}

/** The query of `GET /v1/files`. */
export const FilesQuery = z.object({
  ...pageQuery(10_000, 10_000),
  order: z.literal(["asc", "desc"], must('be "asc" or "desc"')).optional(),
  purpose: z.string(must("be a purpose")).optional(),
});

export const FileResponse = z.strictObject({
  id: z.string(),
  object: z.literal("file"),
  bytes: z.int().min(0),
  created_at: z.int(),
  expires_at: z.int(),
  filename: z.string(),
  purpose: z.literal(["batch", "batch_output"]),
  status: z.literal("processed"),
});

const ends = { first_id: z.string().nullable(), last_id: z.string().nullable(), has_more: z.boolean() };

export const FileListResponse = z.strictObject({ object: z.literal("list"), data: z.array(FileResponse), ...ends });

export const DeletedFile = z.strictObject({ id: z.string(), object: z.literal("file"), deleted: z.literal(true) });

/** One page of what is listed, with what every list of the API says of itself. */
export function page<T extends { readonly id: string }>(data: readonly T[], hasMore: boolean) {
  const ends = { first_id: data[0]?.id ?? null, last_id: data.at(-1)?.id ?? null };
  return { object: "list" as const, data, ...ends, has_more: hasMore };
}
