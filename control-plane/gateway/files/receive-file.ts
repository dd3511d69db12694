import type { Readable } from "node:stream";
import type { FastifyRequest } from "fastify";
import { MargayError } from "#protocol/errors.ts";
import type { Clock, Random } from "#service/clock.ts";
import { callerOf } from "../auth.ts";
import { parseRequest } from "../generation-host.ts";
import { refuse } from "../http-errors.ts";
import { UploadFields } from "./file-shapes.ts";
import { type FileStore, MAX_FILES, PART_BYTES, type StoredFile, timedId } from "./file-store.ts";
import { boundaryOf, FormReader } from "./form-reader.ts";

/** What the files API is given. */
export interface FilesHost {
  readonly files: FileStore;
  readonly clock: Clock;
  readonly random: Random;
}

/** Bytes of a field that is no file. */
const MAX_FIELD_BYTES = 1024;

/** Takes one file out of a form and keeps it. What is refused on its way is not kept. Throws `MargayError`. */
export async function receiveFile(host: FilesHost, request: FastifyRequest): Promise<StoredFile> {
  const { files, clock, random } = host;
  const { maxFileBytes, maxAgeMs } = files.limits;
  const tenant = callerOf(request).tenant.name;
  const boundary = boundaryOf(request.headers["content-type"]);
  const room = Math.min(maxFileBytes, await roomOf(host, tenant));
  const createdMs = clock.now();
  const id = `file-${timedId(createdMs, random)}`;
  const source = request.body as Readable;
  try {
    const { fields, bytes } = await readForm(new FormReader(chunksOf(source), boundary), (body) =>
      keep(files, tenant, id, body, room),
    );
    if (bytes === null) throw refuse("file", "is required and must be a file");
    const { purpose, filename, ...given } = parseRequest(UploadFields, fields);
    const { "expires_after[anchor]": anchor, "expires_after[seconds]": seconds } = given;
    if ((anchor === undefined) !== (seconds === undefined)) {
      throw refuse("expires_after", "must have both anchor and seconds");
    }
    const createdAt = Math.floor(createdMs / 1000);
    const expiresAt = createdAt + Math.min(seconds ?? Number.POSITIVE_INFINITY, Math.floor(maxAgeMs / 1000));
    const head = { filename, purpose, bytes, createdAt, expiresAt };
    await files.publish(tenant, id, head);
    return { id, ...head };
  } catch (error) {
    await files.remove(tenant, id).catch(() => {});
    throw error;
  } finally {
    // Whoever still sends gets an answer only behind what was sent.
    source.resume();
  }
}

/** What a tenant may still keep, in bytes. */
async function roomOf({ files, clock }: FilesHost, tenant: string): Promise<number> {
  const ids = await files.ids(tenant);
  const own = await files.findAll(tenant, ids, clock.now());
  if (own.length >= MAX_FILES) throw refuse("file", `must be one of at most ${MAX_FILES}: delete some`);
  const used = own.reduce((sum, { bytes }) => sum + bytes, 0);
  return Math.max(0, files.limits.maxBytes / 2 - used);
}

async function* chunksOf(source: Readable): AsyncGenerator<Uint8Array> {
  try {
    // The socket stays open: an answer is to go out on it.
    for await (const chunk of source.iterator({ destroyOnReturn: false })) yield chunk as Uint8Array;
  } catch (error) {
    throw new MargayError("cancelled", "The client left.", { cause: error });
  }
}

async function readForm(form: FormReader, keepFile: (body: AsyncIterable<Uint8Array>) => Promise<number>) {
  const fields: Record<string, string> = {};
  let bytes: number | null = null;
  for await (const { name, filename, body } of form.parts()) {
    if (name === "file") {
      if (bytes !== null) throw refuse("file", "must be sent once");
      if (filename === null) throw refuse("file", "must be a file with a name");
      fields.filename = filename;
      bytes = await keepFile(body);
    } else if (name !== "filename") {
      fields[name] = await readField(name, body);
    }
  }
  return { fields, bytes };
}

async function readField(name: string, body: AsyncIterable<Uint8Array>): Promise<string> {
  const pieces: Uint8Array[] = [];
  let bytes = 0;
  for await (const piece of body) {
    bytes += piece.byteLength;
    if (bytes > MAX_FIELD_BYTES) throw refuse(name.slice(0, 64), `must be at most ${MAX_FIELD_BYTES} bytes`);
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString("utf8");
}

/** Writes a body in pieces; returns its bytes. */
async function keep(files: FileStore, tenant: string, id: string, body: AsyncIterable<Uint8Array>, room: number) {
  let [after, number, size] = [0, 0, 0];
  const write = async (bytes: Uint8Array) => {
    size += bytes.byteLength;
    const part = { number: number++, writer: files.gatewayId, bytes, size, lines: new Int32Array(0), answered: 0 };
    after = (await files.append(tenant, id, after, part).catch(noRoom)) ?? 0;
    if (after === 0) throw new MargayError("internal", "somebody else writes this file");
  };
  let held: Uint8Array[] = [];
  let heldBytes = 0;
  for await (const piece of body) {
    heldBytes += piece.byteLength;
    held.push(piece);
    if (size + heldBytes > room) throw tooLarge(files, room);
    if (heldBytes < PART_BYTES) continue;
    await write(Buffer.concat(held));
    [held, heldBytes] = [[], 0];
  }
  if (heldBytes > 0 || number === 0) await write(Buffer.concat(held));
  return size;
}

function tooLarge({ limits }: FileStore, room: number): MargayError {
  const most = `${limits.maxFileBytes / 1_048_576} MiB`;
  const rule =
    room < limits.maxFileBytes
      ? `The files of this tenant have room for ${room} bytes more: delete some.`
      : `A file must be at most ${most}.`;
  return new MargayError("payload_too_large", rule, { param: "file" });
}

function noRoom(error: MargayError): never {
  if (error.code !== "payload_too_large") throw error;
  const rule = "The server has no room left for files: delete some, or come back later.";
  throw new MargayError("payload_too_large", rule, { param: "file" });
}
