import { spawn } from "node:child_process";
import { readdirSync, readFileSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CheckpointFiles, type LoadedWeights, loadWeights, readTensors } from "../support/checkpoint-files.ts";
import { buildNativePrograms } from "../support/native-program.ts";

const files = new CheckpointFiles();
beforeAll(() => buildNativePrograms(), 20 * 60_000);
afterAll(() => files.remove());

const load = loadWeights;

describe("packed weights", () => {
  const packedFile = (folder: string) => join(folder, readdirSync(folder).find((name) => name.endsWith(".weights"))!);

  it("are made once, and found again with the same result, per backend", () => {
    const checkpoint = files.write("fp8");
    const packed = join(files.folder(), "made", "here");
    for (const backend of ["cpu", "ref"] as const) {
      const first = load(checkpoint, packed, backend);
      expect(first).toMatchObject({ ok: true, hit: false });
      expect(load(checkpoint, packed, backend)).toEqual({ ...first, hit: true });
      expect(load(checkpoint, "-", backend)).toEqual(first);
    }
    expect(readdirSync(packed).filter((name) => name.endsWith(".weights"))).toHaveLength(2);
    expect(readdirSync(packed).filter((name) => name.endsWith(".tmp"))).toHaveLength(0);
  });

  it("stay fp8 where the checkpoint is, with its scales", () => {
    const { bytes } = load(files.write("fp8"));
    const original = [...readTensors(join(files.write("fp8"), "model.safetensors")).values()].reduce(
      (sum, t) => sum + t.bytes.length,
      0,
    );
    expect(bytes).toBeLessThan(original * 1.25);
  });

  it("belong to the checkpoint's content: another one does not find them", () => {
    const packed = files.folder();
    const first = load(files.write("plain"), packed);
    const other = files.write("plain", (tensors) => {
      const { dtype, shape, bytes } = tensors.get("model.norm.weight")!;
      const changed = Uint8Array.from(bytes);
      changed[0]! ^= 1;
      tensors.set("model.norm.weight", { dtype, shape, bytes: changed });
    });
    const second = load(other, packed);
    expect(second).toMatchObject({ ok: true, hit: false });
    expect(second.hash).not.toBe(first.hash);
    expect(load(files.write("plain"), packed)).toEqual({ ...first, hit: true });
  });

  it("do not answer for a checkpoint that was changed in place, whatever its time says", () => {
    const checkpoint = files.write("plain");
    const tensors = join(checkpoint, "model.safetensors");
    const packed = files.folder();
    const longAgo = new Date(1_000_000_000_000);
    utimesSync(tensors, longAgo, longAgo);
    const first = load(checkpoint, packed);
    const bytes = readFileSync(tensors);
    bytes[bytes.length - 2]! ^= 1;
    writeFileSync(tensors, bytes);
    utimesSync(tensors, longAgo, longAgo);
    const second = load(checkpoint, packed);
    expect(second).toMatchObject({ ok: true, hit: false });
    expect(second.hash).not.toBe(first.hash);
  });

  it.each([
    ["cut short", (path: string) => truncateSync(path, 5000)],
    ["empty", (path: string) => truncateSync(path, 0)],
    [
      "damaged in one bit",
      (path: string) => {
        const bytes = readFileSync(path);
        bytes[bytes.length - 1000]! ^= 4;
        writeFileSync(path, bytes);
      },
    ],
    [
      "damaged in the header",
      (path: string) => {
        const bytes = readFileSync(path);
        bytes[20]! ^= 4;
        writeFileSync(path, bytes);
      },
    ],
  ])("are made anew when %s", (_, damage) => {
    const checkpoint = files.write("plain");
    const packed = files.folder();
    const first = load(checkpoint, packed);
    damage(packedFile(packed));
    expect(load(checkpoint, packed)).toEqual({ ...first, hit: false });
    expect(load(checkpoint, packed)).toEqual({ ...first, hit: true });
  });

  it("are checked in full when they have another identity than at the last check", () => {
    const checkpoint = files.write("plain");
    const packed = files.folder();
    const first = load(checkpoint, packed);
    const path = packedFile(packed);
    const memory = `${path}.checked`;
    const remembered = readFileSync(memory, "utf8");
    expect(load(checkpoint, packed)).toEqual({ ...first, hit: true });
    expect(readFileSync(memory, "utf8")).toBe(remembered);
    const longAgo = new Date(1_000_000_000_000);
    utimesSync(path, longAgo, longAgo);
    expect(load(checkpoint, packed)).toEqual({ ...first, hit: true });
    expect(readFileSync(memory, "utf8")).not.toBe(remembered);
    const bytes = readFileSync(path);
    bytes[bytes.length - 1000]! ^= 4;
    writeFileSync(path, bytes);
    utimesSync(path, longAgo, longAgo);
    expect(load(checkpoint, packed)).toEqual({ ...first, hit: false });
  });

  it("are made by one process when several start together, and what a dead one left is removed", async () => {
    const checkpoint = files.write("plain");
    const packed = files.folder();
    const program = fileURLToPath(new URL("../../native/build/tests/weights", import.meta.url));
    const outputs = await Promise.all(
      Array.from({ length: 4 }, async () => {
        const child = spawn(program, [checkpoint, packed], { stdio: ["ignore", "pipe", "inherit"] });
        let text = "";
        for await (const chunk of child.stdout) text += String(chunk);
        return JSON.parse(text) as LoadedWeights;
      }),
    );
    expect(outputs.filter(({ ok }) => ok)).toHaveLength(4);
    expect(outputs.filter(({ hit }) => hit === false)).toHaveLength(1);
    const leftover = `${packedFile(packed)}.999999.tmp`;
    writeFileSync(leftover, "half");
    truncateSync(packedFile(packed), 10);
    expect(load(checkpoint, packed)).toMatchObject({ ok: true, hit: false });
    expect(readdirSync(packed).filter((name) => name.endsWith(".tmp"))).toHaveLength(0);
  });

  it("need a folder that can be made", () => {
    const blocked = join(files.folder(), "file");
    writeFileSync(blocked, "");
    expect(load(files.write("plain"), join(blocked, "packed"))).toMatchObject({ ok: false, code: "io" });
  });
});
