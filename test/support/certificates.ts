import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/** Whether there is an openssl: Node's crypto reads certificates, and signs none. */
export const hasOpenssl = (() => {
  try {
    openssl(["version"]);
    return true;
  } catch {
    return false;
  }
})();

export interface Certificate {
  readonly certFile: string;
  readonly keyFile: string;
}

/** An authority made for one test, in a folder that goes with it. */
export class Authority implements Disposable {
  readonly folder = mkdtempSync(join(tmpdir(), "margay-ca-"));
  readonly caFile = join(this.folder, "ca.crt");
  readonly #keyFile = join(this.folder, "ca.key");

  constructor(name = "test authority") {
    const files = ["-keyout", this.#keyFile, "-out", this.caFile];
    openssl(["req", "-x509", ...CURVE, "-days", "2", "-subj", `/CN=${name}`, ...files]);
  }

  get ca(): Buffer {
    return readFileSync(this.caFile);
  }

  /** A certificate for the loopback address; `days` -1: its time was over yesterday. */
  issue(name: string, days: 1 | -1 = 1): Certificate {
    const at = (ending: string) => join(this.folder, `${name}.${ending}`);
    const [keyFile, certFile, request, extensions] = [at("key"), at("crt"), at("csr"), at("ext")] as const;
    openssl(["req", "-new", ...CURVE, "-subj", `/CN=${name}`, "-keyout", keyFile, "-out", request]);
    writeFileSync(extensions, "subjectAltName=IP:127.0.0.1,DNS:localhost\n");
    const signer = ["-CA", this.caFile, "-CAkey", this.#keyFile, "-CAcreateserial", "-extfile", extensions];
    openssl(["x509", "-req", "-in", request, "-days", String(days), ...signer, "-out", certFile]);
    return { certFile, keyFile };
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

function openssl(argv: readonly string[]): void {
  execFileSync("openssl", argv, { stdio: "pipe", timeout: 30_000 });
}
