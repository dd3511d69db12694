import OpenAI, { toFile } from "openai";
import { describe, expect, test } from "vitest";
import { DeletedFile, FileListResponse, FileResponse } from "../../control-plane/gateway/files/file-shapes.ts";
import { FormReader } from "../../control-plane/gateway/files/form-reader.ts";
import { FakeClock } from "../support/fake-clock.ts";
import { answering } from "../support/fake-flow.ts";
import { type Harness, startHarness } from "../support/gateway-harness.ts";
import { randomOf } from "../support/junk.ts";

const idle = answering([]);

function clientOf(harness: Harness): OpenAI {
  return new OpenAI({ baseURL: `${harness.url}/v1`, apiKey: "none", maxRetries: 0 });
}

async function upload(harness: Harness, parts: Readonly<Record<string, string | File>>): Promise<Response> {
  const form = new FormData();
  for (const [name, value] of Object.entries(parts)) form.append(name, value);
  return await fetch(`${harness.url}/v1/files`, { method: "POST", body: form });
}

const jsonl = (bytes: number) => new File([Buffer.alloc(bytes, "a")], "in.jsonl");
const refusal = async (response: Response) => ({
  status: response.status,
  param: ((await response.json()) as { error: { param: string } }).error.param,
});

describe("a file", () => {
  test("is kept byte by byte, listed page by page, and gone when it is deleted", async () => {
    await using it = await startHarness(idle);
    const client = clientOf(it);
    const bytes = Buffer.from(Array.from({ length: 1_500_000 }, (_, i) => (i * 7919) % 251));
    const kept = await client.files.create({ purpose: "batch", file: await toFile(bytes, "a b.jsonl") });
    expect(FileResponse.parse(withoutRequest(kept))).toMatchObject({
      bytes: 1_500_000,
      filename: "a b.jsonl",
      purpose: "batch",
    });
    const back = Buffer.from(await (await client.files.content(kept.id)).arrayBuffer());
    expect(back.equals(bytes)).toBe(true);
    const ids = [kept.id];
    for (let i = 0; i < 4; i++) {
      ids.unshift(
        (await client.files.create({ purpose: "batch", file: await toFile(Buffer.from(""), `${i}.jsonl`) })).id,
      );
    }
    const listed: string[] = [];
    for await (const { id } of client.files.list({ limit: 2 })) listed.push(id);
    expect(new Set(listed)).toEqual(new Set(ids));
    expect(listed).toHaveLength(5);
    FileListResponse.parse(await (await fetch(`${it.url}/v1/files?order=asc&purpose=batch`)).json());
    expect((await client.files.list({ purpose: "batch_output" })).data).toEqual([]);
    DeletedFile.parse(withoutRequest(await client.files.delete(kept.id)));
    for (const gone of [client.files.retrieve(kept.id), client.files.content(kept.id), client.files.delete(kept.id)]) {
      await expect(gone).rejects.toMatchObject({ status: 404, param: "file_id" });
    }
  });

  test("goes by itself when its time is over", async () => {
    const clock = new FakeClock();
    await using it = await startHarness(idle, {
      clock,
      config: { files: { maxAgeMs: 7_200_000, maxBytes: 8_388_608, maxFileBytes: 1024 } },
    });
    const sent = await upload(it, {
      purpose: "batch",
      "expires_after[anchor]": "created_at",
      "expires_after[seconds]": "3600",
      file: jsonl(10),
    });
    const { id, created_at, expires_at } = FileResponse.parse(await sent.json());
    expect(expires_at - created_at).toBe(3_600);
    await clock.advance(3_599_000 - (clock.now() % 1000));
    expect((await fetch(`${it.url}/v1/files/${id}`)).status).toBe(200);
    await clock.advance(1_000);
    expect((await fetch(`${it.url}/v1/files/${id}`)).status).toBe(404);
    expect(((await (await fetch(`${it.url}/v1/files`)).json()) as { data: object[] }).data).toEqual([]);
  });

  test.each([
    ["no purpose", { file: jsonl(1) }, 400, "purpose"],
    ["another purpose", { purpose: "fine-tune", file: jsonl(1) }, 400, "purpose"],
    ["no file", { purpose: "batch" }, 400, "file"],
    ["a text for a file", { purpose: "batch", file: "text" }, 400, "file"],
    ["too large a file", { purpose: "batch", file: jsonl(4_194_305) }, 413, "file"],
    ["too long a name", { purpose: "batch", file: new File(["a"], "n".repeat(256)) }, 400, "filename"],
    ["half an expiry", { purpose: "batch", file: jsonl(1), "expires_after[seconds]": "3600" }, 400, "expires_after"],
    [
      "too short a life",
      { purpose: "batch", file: jsonl(1), "expires_after[anchor]": "created_at", "expires_after[seconds]": "5" },
      400,
      "expires_after[seconds]",
    ],
    ["too large a field", { purpose: "b".repeat(2_000), file: jsonl(1) }, 400, "purpose"],
  ])("with %s is refused by name, and nothing of it is kept", async (_name, parts, status, param) => {
    await using it = await startHarness(idle);
    expect(await refusal(await upload(it, parts as never))).toEqual({ status, param });
    expect((await clientOf(it).files.list()).data).toEqual([]);
  });

  test("for which its tenant has no room is refused, with the room that is left", async () => {
    await using it = await startHarness(idle);
    for (const bytes of [4_194_304, 4_000_000])
      expect((await upload(it, { purpose: "batch", file: jsonl(bytes) })).status).toBe(200);
    const refused = await upload(it, { purpose: "batch", file: jsonl(200_000) });
    expect(refused.status).toBe(413);
    expect(((await refused.json()) as { error: object }).error).toMatchObject({
      param: "file",
      message: expect.stringContaining("194304 bytes more"),
    });
  });

  test.each([
    ["application/json", "{}"],
    ["multipart/form-data", "x"],
    ["multipart/form-data; boundary=b", "x"],
    ["multipart/form-data; boundary=b", "--b\r\n\r\nx\r\n--b--"],
    ["multipart/form-data; boundary=b", '--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\ncut'],
    ["multipart/form-data; boundary=b", `--b\r\n${"x".repeat(20_000)}\r\n\r\n--b--`],
    ["multipart/form-data; boundary=b", "--b--"],
  ])("in a body of type %s that is %j is refused", async (type, body) => {
    await using it = await startHarness(idle);
    const response = await fetch(`${it.url}/v1/files`, { method: "POST", headers: { "content-type": type }, body });
    expect(response.status).toBe(400);
    expect((await clientOf(it).files.list()).data).toEqual([]);
  });
});

test("a form is read the same however its bytes are cut", async () => {
  const random = randomOf(7);
  const content = Buffer.from(Array.from({ length: 3_000 }, () => "\r\n-x"[random(4)]!.charCodeAt(0)));
  const form = Buffer.concat([
    Buffer.from('--bb\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--bb\r\n'),
    Buffer.from('content-type: text/plain\r\ncontent-disposition: form-data; name="file"; filename="a\\"b"\r\n\r\n'),
    ...[content, Buffer.from("\r\n--bb--\r\n")],
  ]);
  for (let round = 0; round < 50; round++) {
    async function* cut() {
      for (let at = 0; at < form.length; ) {
        const to = at + 1 + random(round < 10 ? 3 : 700);
        yield form.subarray(at, to);
        at = to;
      }
    }
    const seen: [string, string | null, Buffer][] = [];
    for await (const { name, filename, body } of new FormReader(cut(), "bb").parts()) {
      const pieces: Uint8Array[] = [];
      for await (const piece of body) pieces.push(Buffer.from(piece));
      seen.push([name, filename, Buffer.concat(pieces)]);
    }
    expect(seen.map(([name, filename]) => [name, filename])).toEqual([
      ["purpose", null],
      ["file", 'a"b'],
    ]);
    expect(seen[0]![2].toString()).toBe("batch");
    expect(seen[1]![2].equals(content)).toBe(true);
  }
});

function withoutRequest<T extends object>(answer: T): object {
  const { _request_id, ...rest } = answer as T & { _request_id?: string };
  return rest;
}
