import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { BUS_ROLES } from "#protocol/permissions.ts";
import { type NatsCredentials, natsConfig } from "#service/nats-config.ts";
import { chartFolder } from "../support/kubernetes-tools.ts";

const file = join(chartFolder, "files", "nats.conf");

/** The server reads passwords from its environment: `$NAME` without quotes. */
function chartConfig(): string {
  const variable = (role: string) => `PASSWORD_${role.toUpperCase().replaceAll("-", "_")}`;
  const credentials = Object.fromEntries(BUS_ROLES.map((role) => [role, variable(role)])) as NatsCredentials;
  const folder = "/var/lib/nats";
  const text = natsConfig({ host: "0.0.0.0", port: 4222, portsFolder: "/tmp", storeFolder: folder, credentials });
  return text.replaceAll(/password: "(PASSWORD_[A-Z_]+)"/g, "password: $$$1");
}

/** WRITE_DOCS=1 rewrites the file instead of checking it. */
test("the chart's NATS server grants what the product's does", () => {
  if (process.env.WRITE_DOCS === "1") writeFileSync(file, chartConfig());
  expect(readFileSync(file, "utf8")).toBe(chartConfig());
});
