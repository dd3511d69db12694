import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { SETTINGS } from "../control-plane/service/settings.ts";

const readme = fileURLToPath(new URL("../README.md", import.meta.url));

function settingsTable(): string {
  const rows = Object.entries(SETTINGS).map(
    ([name, s]) =>
      `| \`${name}\` | ${s.default === null ? "" : `\`${s.default}\``} | ${s.about.replaceAll("|", "\\|")} |`,
  );
  return ["| variable | default | |", "|---|---|---|", ...rows].join("\n");
}

/** WRITE_DOCS=1 rewrites the table instead of checking it. */
test("README's table of settings is the schema's", () => {
  const text = readFileSync(readme, "utf8");
  const wanted = text.replace(
    /<!-- settings -->[\s\S]*<!-- \/settings -->/,
    `<!-- settings -->\n${settingsTable()}\n<!-- /settings -->`,
  );
  if (process.env.WRITE_DOCS === "1") writeFileSync(readme, wanted);
  expect(readFileSync(readme, "utf8")).toBe(wanted);
});
