import { MAX_MESSAGE_BYTES } from "#protocol/bus/wire.ts";
import { BUS_ROLES, type BusRole, permissionsOf } from "#protocol/permissions.ts";

/** Password of each role's NATS user; the user is named after the role. */
export type NatsCredentials = Readonly<Record<BusRole, string>>;

export interface NatsConfigOptions {
  readonly host: string;
  /** 0: any free port; the server writes it to a `.ports` file in `portsFolder`. */
  readonly port: number;
  readonly portsFolder: string;
  /** Folder of JetStream's files. */
  readonly storeFolder: string;
  readonly credentials: NatsCredentials;
}

/** How long a received message may be answered: longer than any request waits. */
const ANSWER_WITHIN = "10m";
/** Epochs take next to nothing; the rest is for journals, which have bounds of their own. */
const STORE_BYTES = 5 * 1024 * 1024 * 1024;

/** For journals that need not outlive the server. */
const MEMORY_BYTES = 32 * 1024 * 1024;

/**
 * Text of a nats-server configuration file: one user per role, everything denied that is not listed. It holds the
 * passwords, so the file belongs to its owner alone (mode 0600).
 *
 * `sync_interval: always`: an epoch that was given out must not be given again after a power loss.
 */
export function natsConfig(options: NatsConfigOptions): string {
  const { host, port, portsFolder, storeFolder, credentials } = options;
  const users = BUS_ROLES.map((role) => {
    const { publish, subscribe, answers } = permissionsOf(role);
    return `    {
      user: ${quote(role)}, password: ${quote(credentials[role])}
      permissions: {
        publish: { allow: ${list(publish)} }
        subscribe: { allow: ${list(subscribe)} }${answers ? `\n        allow_responses: { max: 1, expires: "${ANSWER_WITHIN}" }` : ""}
      }
    }`;
  });
  return `server_name: margay
listen: ${quote(`${host}:${port === 0 ? -1 : port}`)}
ports_file_dir: ${quote(portsFolder)}
max_payload: ${MAX_MESSAGE_BYTES}
max_pending: ${8 * MAX_MESSAGE_BYTES}
write_deadline: "5s"
jetstream: {
  store_dir: ${quote(storeFolder)}
  max_file_store: ${STORE_BYTES}
  max_memory_store: ${MEMORY_BYTES}
  sync_interval: always
}
authorization: {
  users: [
${users.join("\n")}
  ]
}
`;
}

function list(subjects: readonly string[]): string {
  return `[${subjects.map(quote).join(", ")}]`;
}

function quote(text: string): string {
  return JSON.stringify(text);
}
