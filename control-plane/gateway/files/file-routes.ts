import { Readable } from "node:stream";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { callerOf } from "../auth.ts";
import { parseRequest } from "../generation-host.ts";
import { refuse } from "../http-errors.ts";
import { FilesQuery, page } from "./file-shapes.ts";
import { noFile, type StoredFile } from "./file-store.ts";
import { type FilesHost, receiveFile } from "./receive-file.ts";

/** Most files of one page, whatever its `limit`. */
const MOST_OF_A_PAGE = 500;
/** A reader that takes nothing for so long has left. */
const READER_MS = 60_000;

interface OfFile {
  readonly Params: { readonly file_id: string };
}
type Asked = FastifyRequest<OfFile>;

/** The files API. */
export function addFileRoutes(app: FastifyInstance, host: FilesHost): void {
  const one = "/v1/files/:file_id";
  app.register(async (forms) => {
    forms.removeAllContentTypeParsers();
    // A form is read by whoever asked for it, as it comes in: its size is bounded there.
    forms.addContentTypeParser("multipart/form-data", { bodyLimit: Number.MAX_SAFE_INTEGER }, (_, payload, done) =>
      done(null, payload),
    );
    forms.post("/v1/files", { bodyLimit: Number.MAX_SAFE_INTEGER }, async (request) => {
      if (request.body === undefined) throw refuse("file", "is required and must come as multipart/form-data");
      return fileObject(await receiveFile(host, request));
    });
  });
  app.get("/v1/files", (request) => list(host, request));
  app.get<OfFile>(one, async (request) => fileObject(await ownFile(host, request)));
  app.get<OfFile>(`${one}/content`, (request, reply) => content(host, request, reply));
  app.delete<OfFile>(one, (request) => remove(host, request));
}

/** Throws `not_found`, for the files of others as well. */
async function ownFile({ files, clock }: FilesHost, request: Asked): Promise<StoredFile> {
  const file = await files.find(callerOf(request).tenant.name, request.params.file_id, clock.now());
  if (file === null) throw noFile();
  return file;
}

async function list({ files, clock }: FilesHost, request: FastifyRequest) {
  const { after, limit = 10_000, order = "desc", purpose } = parseRequest(FilesQuery, request.query);
  const tenant = callerOf(request).tenant.name;
  const ids = [...(await files.ids(tenant))];
  if (order === "desc") ids.reverse();
  if (after !== undefined && !ids.includes(after)) throw refuse("after", "must be the id of one of the files");
  const later = ids.slice(after === undefined ? 0 : ids.indexOf(after) + 1);
  const found = await files.findAll(tenant, later, clock.now());
  const wanted = found.filter((file) => (purpose ?? file.purpose) === file.purpose);
  const most = Math.min(limit, MOST_OF_A_PAGE);
  return page(wanted.slice(0, most).map(fileObject), wanted.length > most);
}

async function content(host: FilesHost, request: Asked, reply: FastifyReply) {
  const { id, bytes } = await ownFile(host, request);
  const { files, clock } = host;
  const parts = files.parts(callerOf(request).tenant.name, id);
  async function* body() {
    let gone = clock.after(READER_MS, () => reply.raw.destroy());
    try {
      for await (const part of parts) {
        gone.cancel();
        yield part.bytes;
        gone = clock.after(READER_MS, () => reply.raw.destroy());
      }
    } finally {
      gone.cancel();
    }
  }
  reply.type("application/octet-stream").header("content-length", bytes);
  return reply.send(Readable.from(body(), { objectMode: false }));
}

async function remove(host: FilesHost, request: Asked) {
  const { id } = await ownFile(host, request);
  await host.files.remove(callerOf(request).tenant.name, id);
  return { id, object: "file", deleted: true } as const;
}

function fileObject({ id, bytes, createdAt, expiresAt, filename, purpose }: StoredFile) {
  return {
    ...{ id, object: "file" as const, bytes, created_at: createdAt, expires_at: expiresAt, filename, purpose },
    ...{ status: "processed" as const },
  };
}
