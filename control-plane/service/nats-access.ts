import { resolve } from "node:path";
import type { NatsTls } from "#protocol/bus/nats-bus.ts";
import { SettingsError } from "./settings.ts";

/** How a process reaches the NATS server and shows who it is. */
export interface NatsAccess {
  readonly url: string;
  readonly user: string | null;
  readonly password: string | null;
  readonly tls: NatsTls | null;
}

/** What is read of the environment. */
export interface NatsSettings {
  readonly MARGAY_NATS_USER: string | null;
  readonly MARGAY_NATS_PASSWORD: string | null;
  readonly MARGAY_NATS_CA_FILE: string | null;
  readonly MARGAY_NATS_CERT_FILE: string | null;
  readonly MARGAY_NATS_KEY_FILE: string | null;
}

/** Throws `SettingsError` where a certificate comes without its key. */
export function natsAccess(settings: NatsSettings, url: string): NatsAccess {
  const { MARGAY_NATS_CA_FILE: ca, MARGAY_NATS_CERT_FILE: cert, MARGAY_NATS_KEY_FILE: key } = settings;
  if ((cert === null) !== (key === null)) {
    const missing = cert === null ? "MARGAY_NATS_CERT_FILE" : "MARGAY_NATS_KEY_FILE";
    throw new SettingsError(`${missing} is not set: a certificate for NATS needs its key`);
  }
  const certificate = cert === null || key === null ? null : { certFile: resolve(cert), keyFile: resolve(key) };
  return {
    url,
    user: settings.MARGAY_NATS_USER,
    password: settings.MARGAY_NATS_PASSWORD,
    tls: ca === null && certificate === null ? null : { caFile: ca === null ? null : resolve(ca), certificate },
  };
}
